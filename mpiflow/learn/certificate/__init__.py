"""What short partial evolutions can teach, known before anything is trained."""
