"""Who serves a call: what the user asked for, the gate, and what was prepared for the backends."""
