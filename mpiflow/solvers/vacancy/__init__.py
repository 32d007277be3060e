"""How vacancies advance in time."""
