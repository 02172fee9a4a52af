"""What the command lines share: how they end, what they print, which photos they read, which files they write."""
