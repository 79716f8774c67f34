//! Settings → file server. Alone knows which kinds there are.

use super::FileServer;
use super::directory::Directory;
use crate::storage::FileServerSettings;
use crate::storage::step::Steps;

/// The file server that `settings` describe. Touches nothing: it may be away.
/// `own_name` is this vault's, so that it knows its own temporary files again.
pub(in crate::storage) fn open(
    settings: &FileServerSettings,
    own_name: &str,
    steps: Steps,
) -> Box<dyn FileServer> {
    Box::new(Directory::new(&settings.name, &settings.path, own_name, steps))
}
