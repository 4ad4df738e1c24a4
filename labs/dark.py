"""A picture of the library for a dark page: python labs/dark.py < LIGHT.svg > DARK.svg"""

import sys

from variegrad.reports.style import in_the_dark

if __name__ == "__main__":
    sys.stdout.buffer.write(in_the_dark(sys.stdin.buffer.read()))
