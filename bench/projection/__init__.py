"""What a kernel costs on a GPU that is not there: its machine code read, its addresses followed, its pipes counted."""
