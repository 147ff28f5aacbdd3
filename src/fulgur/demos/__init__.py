"""Small models and data to try things with."""
