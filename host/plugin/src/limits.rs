//! Limits: every bound on what a plugin may use, as one named number each.
//!
//! The name in a message, in a configuration file and in a manifest is the same kebab-case word. A manifest can only lower a
//! limit: the effective value is the smaller of what it asks for and what the user allows.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use wasmtime::ResourceLimiter;

/// A number of bytes or a count: an integer, or text such as `64MiB` or `200k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    /// Reads `123`, `2_000`, `64KiB`, `64MiB`, `2GiB`, `5k`, `5M`, `5G`.
    ///
    /// # Errors
    /// With the text when it is none of these.
    pub fn parse(text: &str) -> Result<Size, String> {
        let clean: String = text.chars().filter(|c| *c != '_' && !c.is_whitespace()).collect();
        let digits = clean.bytes().take_while(u8::is_ascii_digit).count();
        let factor: u64 = match &clean[digits..] {
            "" | "B" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(format!("`{text}` is no size; write a number with k, M, G, KiB, MiB or GiB")),
        };
        let number: Option<u64> = clean[..digits].parse().ok();
        let size = number.and_then(|n| n.checked_mul(factor));
        size.map(Size).ok_or_else(|| format!("`{text}` is no size below 2^64"))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Number(n) => Ok(Size(n)),
            Raw::Text(text) => Size::parse(&text).map_err(serde::de::Error::custom),
        }
    }
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Size::deserialize(deserializer).map(|s| s.0)
}

macro_rules! limits {
    ($($(#[$doc:meta])* $field:ident, $name:literal = $default:expr;)*) => {
        /// What one plugin may use. Per call unless said otherwise.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct LimitConfig {
            $($(#[$doc])* #[serde(deserialize_with = "size")] pub $field: u64,)*
        }

        impl Default for LimitConfig {
            fn default() -> LimitConfig {
                LimitConfig { $($field: $default,)* }
            }
        }

        impl LimitConfig {
            /// Names of all limits, as in configuration, manifests and messages.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// Every limit with its value.
            pub fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![$(($name, self.$field)),*]
            }

            /// Sets a limit by name.
            ///
            /// # Errors
            /// When there is no such limit; the message lists those there are.
            pub fn set(&mut self, name: &str, value: u64) -> Result<(), String> {
                match name {
                    $($name => self.$field = value,)*
                    _ => return Err(format!("there is no limit `{name}`; there are: {}", Self::NAMES.join(", "))),
                }
                Ok(())
            }
        }
    };
}

limits! {
    /// Instructions, roughly, that a call into a traced plugin may execute.
    fuel, "fuel" = 5_000_000_000;
    /// Milliseconds that a call into a data plugin may take.
    epoch_ms, "epoch-ms" = 10_000;
    /// Bytes of all linear memories of one instance.
    memory, "memory" = 512 << 20;
    /// Elements of all tables of one instance.
    table, "table" = 200_000;
    /// Core instances inside one component.
    instances, "instances" = 64;
    /// Live resource handles.
    handles, "handles" = 20_000;
    /// Calls from one call's guest code back into the host. Host functions cost no fuel, so they are counted on their own.
    host_calls, "host-calls" = 2_000_000;
    /// Bytes that a plugin may hand to the host in one call or answer.
    hostcall_bytes, "hostcall-bytes" = 128 << 20;
    /// Bytes of WASM stack.
    stack, "stack" = 1 << 20;
    /// Bytes of a component file.
    component_bytes, "component-bytes" = 128 << 20;
    /// Nodes of one graph.
    nodes, "nodes" = 400_000;
    /// Bytes of constants of one graph.
    constant_bytes, "constant-bytes" = 64 << 20;
    /// Depth of the scope tree.
    scope_depth, "scope-depth" = 64;
    /// Parameters and states of one graph, declarations of one plan, outputs and auxiliary losses of one model.
    params, "params" = 20_000;
    /// Symbols that plugins add to one graph.
    symbols, "symbols" = 256;
    /// Distinct symbolic sizes of one trace.
    dims, "dims" = 65_536;
    /// Axes of a value.
    rank, "rank" = 6;
    /// Inputs of one node.
    fan_in, "fan-in" = 1024;
    /// Bytes of a name, path, tag or message.
    string_bytes, "string-bytes" = 4096;
    /// Lines that a call may log; further ones are dropped.
    log_lines, "log-lines" = 100;
    /// Samples, rows or shards in one answer of a dataset.
    rows, "rows" = 65_536;
}

impl LimitConfig {
    /// The smaller of both, limit by limit.
    ///
    /// # Errors
    /// When `request` names a limit that does not exist.
    pub fn lowered(&self, request: &BTreeMap<String, Size>) -> Result<LimitConfig, String> {
        let mut lowered = self.clone();
        for (name, Size(asked)) in request {
            let current = self.entries().into_iter().find(|(n, _)| n == name).map_or(*asked, |(_, v)| v);
            lowered.set(name, current.min(*asked))?;
        }
        Ok(lowered)
    }

    /// The part that graphs enforce.
    pub fn graph_limits(&self) -> swift_graph::Limits {
        swift_graph::Limits {
            // Node indices travel as 32-bit handles.
            nodes: self.nodes.min(u64::from(u32::MAX / 4)),
            constant_bytes: self.constant_bytes,
            scope_depth: self.scope_depth,
            params: self.params,
            symbols: self.symbols,
            rank: self.rank,
            fan_in: self.fan_in,
        }
    }
}

/// A limit that was reached inside a host function or an allocation; the call traps with it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("limit `{name}` = {limit} reached: {message}")]
pub(crate) struct LimitHit {
    pub(crate) name: &'static str,
    pub(crate) limit: u64,
    pub(crate) message: String,
}

impl LimitHit {
    /// Refuses `value` above `limit`.
    pub(crate) fn check(name: &'static str, limit: u64, value: u64, message: impl FnOnce() -> String) -> Result<(), LimitHit> {
        if value > limit { Err(LimitHit { name, limit, message: message() }) } else { Ok(()) }
    }
}

/// Counts what an instance allocates. Growth past a limit traps, so that a guest cannot go on in a state that it never expects.
#[derive(Debug)]
pub(crate) struct Meter {
    memory: u64,
    table: u64,
    instances: u64,
    memory_used: u64,
    table_used: u64,
}

impl Meter {
    pub(crate) fn new(limits: &LimitConfig) -> Meter {
        Meter { memory: limits.memory, table: limits.table, instances: limits.instances, memory_used: 0, table_used: 0 }
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let used = self.memory_used.saturating_add((desired - current.min(desired)) as u64);
        LimitHit::check("memory", self.memory, used, || format!("a memory grows to {desired} bytes"))?;
        self.memory_used = used;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let used = self.table_used.saturating_add((desired - current.min(desired)) as u64);
        LimitHit::check("table", self.table, used, || format!("a table grows to {desired} elements"))?;
        self.table_used = used;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(error)
    }

    fn instances(&self) -> usize {
        self.instances as usize
    }

    fn tables(&self) -> usize {
        self.instances as usize * 4
    }

    fn memories(&self) -> usize {
        self.instances as usize * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, want) in [("7", 7), ("2_000", 2000), ("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("5k", 5000)] {
            assert_eq!(Size::parse(text), Ok(Size(want)), "{text}");
        }
        for text in ["", "MiB", "1.5MiB", "-3", "99999999999999999999", "20000000000GiB"] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_manifest_lowers_and_never_raises() {
        let user = LimitConfig { nodes: 1000, ..LimitConfig::default() };
        let request = BTreeMap::from([("nodes".to_string(), Size(5000)), ("fuel".to_string(), Size(10))]);
        let limits = user.lowered(&request).unwrap();
        assert_eq!((limits.nodes, limits.fuel), (1000, 10));
        let unknown = BTreeMap::from([("gold".to_string(), Size(1))]);
        assert!(user.lowered(&unknown).unwrap_err().contains("there is no limit `gold`"));
    }

    #[test]
    fn names_are_the_configuration_keys() {
        let json = serde_json::to_value(LimitConfig::default()).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, LimitConfig::NAMES);
    }
}
