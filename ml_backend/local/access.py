"""Getting a personal access token from a Label Studio that was just set up, as its web page would."""

from __future__ import annotations

import httpx

from ml_backend.errors import LabelStudioError

TIMEOUT = 30.0


def token_works(url: str, token: str) -> bool:
    """Whether Label Studio exchanges this personal access token for an access token."""
    response = httpx.post(f"{url}/api/token/refresh", json={"refresh": token}, timeout=TIMEOUT, trust_env=False)
    return response.status_code == 200


def create_token(url: str, username: str, password: str) -> str:
    """Log in and make a personal access token. Label Studio allows one per user: an older one is revoked.

    Raises:
        LabelStudioError: wrong password, or tokens are switched off.
        httpx.HTTPError: Label Studio does not answer.
    """
    with httpx.Client(base_url=url, timeout=TIMEOUT, trust_env=False) as session:
        session.get("/user/login/")
        answer = session.post(
            "/user/login/",
            data={
                "email": username,
                "password": password,
                "csrfmiddlewaretoken": session.cookies.get("csrftoken") or "",
            },
            headers={"Referer": f"{url}/user/login/"},
        )
        if answer.status_code not in (301, 302):
            raise LabelStudioError(
                f"Label Studio refuses the password of {username}.",
                "If it was changed in Label Studio, make a personal access token there (Account & Settings) and put it "
                "into the data folder's file label-studio-token.",
            )
        headers = {"X-CSRFToken": session.cookies.get("csrftoken") or "", "Referer": url}
        created = session.post("/api/token/", headers=headers)
        if created.status_code == 409:
            for known in session.get("/api/token/").raise_for_status().json():
                session.post("/api/token/blacklist/", json={"refresh": known["token"]}, headers=headers)
            created = session.post("/api/token/", headers=headers)
        if created.status_code != 201:
            raise LabelStudioError(
                f"Label Studio makes no personal access token ({created.status_code}): {created.text[:200]}.",
                "Switch personal access tokens on under Organization > Access Token Settings.",
            )
        return str(created.json()["token"])
