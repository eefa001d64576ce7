"""How many tokens to draft: measured costs, calibrated beliefs, the choice of every cycle, and what `refspec tune` keeps."""
