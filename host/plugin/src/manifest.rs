//! Manifests: what a plugin says it is, wants and needs, as TOML beside the file (`dora.toml` for `dora.wasm`) or embedded as the custom
//! section `swift:manifest`. Both may be there; then both bind.
//!
//! A manifest can only narrow: limits are the minimum of what it asks for and the user's, grants the intersection. It is for
//! review; what a plugin can really do is decided by its imports.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::Size;
use crate::{Error, Kind, Result};

/// Name of the custom section.
pub const SECTION: &str = "swift:manifest";

/// Rights beyond computing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Grants {
    /// `head.logits`: a `[tokens, vocab]` tensor in memory.
    pub materialize_logits: bool,
}

impl Grants {
    /// What both allow.
    #[must_use]
    pub fn and(self, other: Grants) -> Grants {
        Grants { materialize_logits: self.materialize_logits && other.materialize_logits }
    }
}

/// `[plugin]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Identity {
    /// Stable id, for example `org.example.dora`.
    pub id: String,
    /// The plugin's own version.
    pub version: String,
    /// Interface it was built for, for example `swift:plugin@0.1`.
    pub api: String,
    /// `kind:id` of everything it provides.
    #[serde(default)]
    pub provides: Vec<String>,
    /// Digest of the component file; only beside the file, since no file can hold its own digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// A manifest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// Who it is.
    pub plugin: Identity,
    /// What it asks for.
    #[serde(default)]
    pub grants: Grants,
    /// Limits it can live with, by name.
    #[serde(default)]
    pub limits: BTreeMap<String, Size>,
}

impl Manifest {
    /// Reads a manifest and checks what can be checked without the component.
    ///
    /// # Errors
    /// When it is no TOML of this form or is for another interface version.
    pub fn parse(plugin: &str, text: &str) -> Result<Manifest> {
        let bad = |message: String| Error::Manifest { plugin: plugin.to_string(), message };
        let manifest: Manifest = toml::from_str(text).map_err(|e| bad(crate::error::clean(&e.to_string(), 600)))?;
        let api = &manifest.plugin.api;
        if !matches!(api.strip_prefix("swift:plugin@"), Some("0.1" | "0.1.0")) {
            let message = format!("is for `{}`; this host runs `swift:plugin@0.1`", crate::error::clean(api, 100));
            return Err(bad(message));
        }
        if manifest.plugin.id.is_empty() || manifest.plugin.id.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(bad("`plugin.id` must be a word such as `org.example.dora`".into()));
        }
        Ok(manifest)
    }

    /// Whether what it provides is what the component exports.
    ///
    /// # Errors
    /// Naming the first kind that is missing on either side.
    pub fn check_kinds(&self, plugin: &str, exported: &[Kind]) -> Result<()> {
        let bad = |message: String| Err(Error::Manifest { plugin: plugin.to_string(), message });
        if self.plugin.provides.is_empty() {
            return Ok(());
        }
        let mut named = Vec::new();
        for entry in &self.plugin.provides {
            let kind = entry.split_once(':').and_then(|(kind, _)| Kind::parse(kind));
            match kind {
                Some(kind) if exported.contains(&kind) => named.push(kind),
                Some(kind) => {
                    return bad(format!("provides `{}`, but the component exports no `{kind}`", crate::error::clean(entry, 100)));
                }
                None => {
                    return bad(format!("`{}` is not of the form kind:id with a known kind", crate::error::clean(entry, 100)));
                }
            }
        }
        match exported.iter().find(|k| !named.contains(k)) {
            Some(kind) => bad(format!("the component exports `{kind}`, which `provides` does not list")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [plugin]
        id = "org.example.dora"
        version = "0.3.1"
        api = "swift:plugin@0.1"
        provides = ["peft:dora", "peft:lora"]
        [grants]
        materialize-logits = true
        [limits]
        fuel = 2_000_000_000
        memory = "64MiB"
    "#;

    #[test]
    fn a_manifest_reads_back() {
        let m = Manifest::parse("dora", GOOD).unwrap();
        assert_eq!(m.limits["memory"], Size(64 << 20));
        assert!(m.grants.materialize_logits);
        assert!(m.check_kinds("dora", &[Kind::Peft]).is_ok());
        let extra = m.check_kinds("dora", &[Kind::Peft, Kind::Loss]).unwrap_err().to_string();
        assert!(extra.contains("exports `loss`, which `provides` does not list"), "{extra}");
        let lacking = m.check_kinds("dora", &[Kind::Loss]).unwrap_err().to_string();
        assert!(lacking.contains("exports no `peft`"), "{lacking}");
    }

    #[test]
    fn other_versions_and_unknown_keys_are_refused() {
        let newer = GOOD.replace("plugin@0.1", "plugin@0.9");
        assert!(Manifest::parse("dora", &newer).unwrap_err().to_string().contains("this host runs `swift:plugin@0.1`"));
        let typo = GOOD.replace("[grants]", "[grant]");
        assert!(Manifest::parse("dora", &typo).unwrap_err().to_string().contains("grant"));
        assert!(Manifest::parse("dora", "not toml").is_err());
    }

    #[test]
    fn grants_intersect() {
        let yes = Grants { materialize_logits: true };
        assert_eq!(yes.and(Grants::default()), Grants::default());
        assert_eq!(yes.and(yes), yes);
    }
}
