"""The worklist and who answers it: simulated experts (`oracle`) or people through a shared folder (`folder`)."""
