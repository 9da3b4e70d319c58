//! chunkdict
