"""What runs beside a training: what it will need and see, what it showed, and what becomes of its adapter."""
