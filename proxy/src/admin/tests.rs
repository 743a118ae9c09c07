//! What the admin listener answers, and to whom.
