"""The native CPU engine: C++ sources, their build and the library that ctypes loads."""
