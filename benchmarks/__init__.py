"""Measures minicelery against other task queues, side by side on one machine."""
