"""What scripts and the web application do with patterns and trainings."""
