"""Training on several ranks: who decides, who has which share, and how they keep together."""
