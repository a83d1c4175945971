"""The gate: what tells a challenger from the champion, the verdict, its page; it may use the rest of registry."""
