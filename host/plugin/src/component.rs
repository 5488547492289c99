//! Core modules to components, and manifests into components.

use std::borrow::Cow;
use std::path::Path;

use wasm_encoder::{ComponentSection, CustomSection};
use wit_component::ComponentEncoder;

use crate::manifest::{Manifest, SECTION};
use crate::{Error, Result};

/// Turns a guest's core module (built for `wasm32-unknown-unknown`, with the interface embedded by the guest bindings) into a
/// component, with `manifest` as its custom section.
///
/// # Errors
/// When the module holds no interface, needs more than the interface gives, or the manifest is malformed.
pub fn encode(name: &str, module: &[u8], manifest: Option<&str>) -> Result<Vec<u8>> {
    let failed = |e: String| Error::Build { path: Path::new(name).to_path_buf(), message: e };
    let mut component = ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|e| failed(format!("the module cannot become a component: {e:#}")))?;
    if let Some(text) = manifest {
        embed(name, &mut component, text)?;
    }
    Ok(component)
}

/// Appends a manifest to a component that has none.
///
/// # Errors
/// When the manifest is malformed or holds a digest, which the file itself cannot.
pub fn embed(name: &str, component: &mut Vec<u8>, manifest: &str) -> Result<()> {
    let parsed = Manifest::parse(name, manifest)?;
    if parsed.plugin.sha256.is_some() {
        let message = "an embedded manifest cannot hold the file's own sha256; put it beside the file".to_string();
        return Err(Error::Manifest { plugin: name.to_string(), message });
    }
    let section = CustomSection { name: Cow::Borrowed(SECTION), data: Cow::Borrowed(manifest.as_bytes()) };
    section.append_to_component(component);
    Ok(())
}
