"""The C++ sources of the emulator's runtime library; a package only so that they are installed with it."""
