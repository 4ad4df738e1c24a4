"""`python -m variegrad`, so that torchrun and friends can start the command."""

from variegrad.cli import main

if __name__ == "__main__":
    main()
