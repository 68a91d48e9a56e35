//! This machine, behind one trait: all that touches it is here.
