"""New images: looked at, triaged, put where they belong, shown; it may use stages and below, but not data."""
