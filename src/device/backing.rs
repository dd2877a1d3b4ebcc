//! The untrusted bytes of a volume: an image file on a loop device.

use std::fs::File;
use std::path::PathBuf;

/// A loop device over a volume's image. It goes away when this value and the mapper over it are gone.
#[derive(Debug)]
pub struct Attached {
    /// The open device node.
    pub device: File,
    /// Its path.
    pub path: PathBuf,
}
