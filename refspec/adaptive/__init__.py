"""How many tokens to draft: a policy of numbers told to it. It knows no clock, no session, no model and no coin."""
