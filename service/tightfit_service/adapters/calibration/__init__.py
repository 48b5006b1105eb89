"""Networks that a device is measured with, to correct its emulator."""
