"""What is kept between runs, where it is kept, and how it travels to the model's device. This package knows no host."""
