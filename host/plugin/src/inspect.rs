//! What `plugin list` and `plugin inspect` say.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::Plugin;

/// Everything about a plugin, for scripts.
pub fn json(plugin: &Plugin) -> Value {
    let about = plugin.about();
    let (took, cached) = plugin.compile_time();
    let items: Vec<Value> = about
        .items
        .iter()
        .map(|i| {
            // A schema that is no JSON is shown as the text it is.
            let schema = serde_json::from_str(&i.config_schema).unwrap_or_else(|_| Value::String(i.config_schema.clone()));
            json!({ "kind": i.kind.name(), "id": i.id, "summary": i.summary, "config-schema": schema, "hosted": i.kind.hosted() })
        })
        .collect();
    let manifests: Vec<Value> = plugin
        .manifests()
        .iter()
        .map(|m| {
            let limits: serde_json::Map<String, Value> = m.limits.iter().map(|(k, v)| (k.clone(), v.0.into())).collect();
            json!({ "plugin": m.plugin, "grants": m.grants, "limits": limits })
        })
        .collect();
    json!({
        "name": about.name,
        "version": about.version,
        "license": about.license,
        "items": items,
        "sha256": plugin.digest(),
        "bytes": plugin.bytes(),
        "imports": plugin.imports(),
        "exports": plugin.exports(),
        "manifests": manifests,
        "limits": plugin.limits(),
        "grants": plugin.grants(),
        "compile-ms": took.as_secs_f64() * 1e3,
        "compile-cache": cached,
    })
}

/// The same for people.
pub fn text(plugin: &Plugin) -> String {
    let about = plugin.about();
    let (took, cached) = plugin.compile_time();
    let mut out = String::new();
    let license = if about.license.is_empty() { "no license stated" } else { &about.license };
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{} {} ({license})", about.name, about.version);
    for item in &about.items {
        let note = if item.kind.hosted() { "" } else { "  [this host does not run this kind yet]" };
        let _ = writeln!(out, "  {}:{}  {}{note}", item.kind, item.id, item.summary);
    }
    let _ = writeln!(out, "sha256    {}", plugin.digest());
    let _ = writeln!(out, "size      {:.1} KiB", plugin.bytes() as f64 / 1024.0);
    let cache = if cached { ", cache on" } else { ", no cache" };
    let _ = writeln!(out, "compile   {:.1} ms{cache}", took.as_secs_f64() * 1e3);
    for (title, list) in [("imports", plugin.imports()), ("exports", plugin.exports())] {
        for (i, name) in list.iter().enumerate() {
            let title = if i == 0 { title } else { "" };
            let _ = writeln!(out, "{title:<9} {name}");
        }
    }
    let grants = if plugin.grants().materialize_logits { "materialize-logits" } else { "none" };
    let _ = writeln!(out, "grants    {grants}");
    for m in plugin.manifests() {
        let _ = writeln!(out, "manifest  {} {} for {}", m.plugin.id, m.plugin.version, m.plugin.api);
        for (name, size) in &m.limits {
            let _ = writeln!(out, "          asks for {name} = {}", size.0);
        }
    }
    out
}
