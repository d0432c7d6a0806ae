"""What pages of tests need that look at pictures of a video: JavaScript, to be put into a function's body."""

#: ``load(content, mime)``: a video element with its first frame, from base64. ``lookAt(video, times, look, fits)``:
#: seeks, waits until the frame has been painted, and returns what ``look()`` finds at each time. While ``fits(found,
#: n)`` is false it looks and seeks again for a while, in all at most 30 s. ``within(promise, ms)``: a time-out.
VIDEO = """
  const within = (promise, ms) => Promise.race([promise, new Promise(done => setTimeout(done, ms))]);
  const load = async (content, mime) => {
    const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
    const video = document.createElement('video');
    video.muted = true;
    document.body.replaceChildren(video);
    const loaded = new Promise((done, fail) => {
      video.onloadeddata = done; video.onerror = () => fail(new Error(video.error.message)); });
    video.src = URL.createObjectURL(new Blob([bytes], {type: mime}));
    await loaded;
    return video;
  };
  const seek = async (video, time) => {
    const painted = new Promise(done => video.requestVideoFrameCallback(done));
    const sought = new Promise(done => { video.onseeked = done; });
    video.currentTime = time;
    await within(sought, 30000);
    await within(painted, 500);
  };
  const lookAt = async (video, times, look, fits) => {
    const seen = [];
    let patience = 300;
    for (const [n, time] of times.entries()) {
      await seek(video, time);
      let found = look();
      for (; !fits(found, n) && patience; patience--) {
        await new Promise(done => setTimeout(done, 100));
        // Busy, Chromium may leave out a frame; a seek to where it is already changes nothing.
        if (patience % 10 === 0) { await seek(video, 0); await seek(video, time); }
        found = look();
      }
      seen.push(found);
    }
    return seen;
  };
"""
