"""What people are asked, and what follows: the parts of `prepare.annotate`."""
