"""Operations on patterns and trainings for scripts and the web application."""
