//! What operators type, and `gilmok demo`: a whole mesh as child processes of this one executable.
