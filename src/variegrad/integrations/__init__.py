"""`Monitor` inside other people's trainers: PyTorch Lightning, Hugging Face Trainer, Accelerate, TensorBoard.

Each is a module of its own, imported by name, and needs the extra of that name: `pip install 'variegrad[lightning]'`.
"""
