import os

# Threads that wait for each other spin for a moment, then sleep. GNU OpenMP's own habit, to spin on, costs nothing where a
# program is alone; but two trainings on the same two cores then take fifty times as long, and with this twice as long.
# It is read when torch is loaded.
os.environ.setdefault('GOMP_SPINCOUNT', '1000')

__version__ = "0.1.0"
