"""Programs of users, and what type checkers say of them."""
