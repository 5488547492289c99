//! The crate's error: which plugin, which function, where in the model, what happened and what would be right.

use std::path::PathBuf;

use wasmtime::Trap;

use crate::limits::LimitHit;

/// Result of working with plugins.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a plugin could not be loaded, or what it did wrong. Text that comes from plugins is free of control characters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("`{}`: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The bytes are no component that this host can load.
    #[error("plugin `{plugin}` is no usable component: {reason}")]
    NotAComponent {
        /// Name it was loaded under.
        plugin: String,
        /// What is wrong with the bytes.
        reason: String,
    },
    /// The component asks for something that plugins do not get.
    #[error("plugin `{plugin}` imports `{import}`: {reason}")]
    Import {
        /// Name it was loaded under.
        plugin: String,
        /// The import.
        import: String,
        /// Why it is refused.
        reason: String,
    },
    /// The manifest is malformed or contradicts the component.
    #[error("manifest of plugin `{plugin}`: {message}")]
    Manifest {
        /// Name it was loaded under.
        plugin: String,
        /// What is wrong.
        message: String,
    },
    /// The file is not the one that was pinned.
    #[error("plugin `{plugin}` has sha256 {got}, but {wanted} is pinned; the file was changed or replaced")]
    Digest {
        /// Name it was loaded under.
        plugin: String,
        /// Pinned digest.
        wanted: String,
        /// Digest of the file.
        got: String,
    },
    /// No installed plugin takes a model.
    #[error("{0}")]
    Model(String),
    /// A limit was reached.
    #[error("plugin `{plugin}`, {function}{}: limit `{name}` = {limit} reached: {message}", at(.scope))]
    Limit {
        /// Plugin.
        plugin: String,
        /// Function that was called.
        function: &'static str,
        /// Scope path, empty at the root.
        scope: String,
        /// The limit's configuration key.
        name: &'static str,
        /// Its value.
        limit: u64,
        /// What asked for more.
        message: String,
    },
    /// The plugin broke down or misused the interface.
    #[error("plugin `{plugin}`, {function}{}: {message}", at(.scope))]
    Trap {
        /// Plugin.
        plugin: String,
        /// Function that was called.
        function: &'static str,
        /// Scope path, empty at the root.
        scope: String,
        /// What happened.
        message: String,
    },
    /// The plugin gave an error back, its own or one of the host's that it passed on.
    #[error("plugin `{plugin}`, {function}{}: {message}{}", at(.scope), hinted(.hint))]
    Plugin {
        /// Plugin.
        plugin: String,
        /// Function that was called.
        function: &'static str,
        /// Kind of error, as in the WIT: `bad-shape`, `missing`, ...
        code: &'static str,
        /// What is wrong.
        message: String,
        /// Scope path, empty at the root.
        scope: String,
        /// What would be right.
        hint: Option<Box<str>>,
    },
    /// The plugin answered with something that makes no sense.
    #[error("plugin `{plugin}`, {function}: the answer is unusable: {message}")]
    Answer {
        /// Plugin.
        plugin: String,
        /// Function that was called.
        function: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// A call after a trap.
    #[error("plugin `{plugin}`, {function}: not called, because this instance broke down earlier ({earlier})")]
    Dead {
        /// Plugin.
        plugin: String,
        /// Function that was to be called.
        function: &'static str,
        /// The first failure.
        earlier: String,
    },
    /// The component does not export the kind that was asked for.
    #[error("plugin `{plugin}` is no {wanted} plugin; it provides: {has}")]
    Kind {
        /// Plugin.
        plugin: String,
        /// What it was to be.
        wanted: &'static str,
        /// What it is.
        has: String,
    },
    /// The WASM engine could not be set up.
    #[error("WASM engine: {0}")]
    Engine(String),
    /// A guest could not be built.
    #[error("building `{}`: {message}", .path.display())]
    Build {
        /// Guest folder or module.
        path: PathBuf,
        /// What went wrong, with the command to run where there is one.
        message: String,
    },
}

fn at(scope: &str) -> String {
    if scope.is_empty() { String::new() } else { format!(" at `{scope}`") }
}

fn hinted(hint: &Option<Box<str>>) -> String {
    hint.as_ref().map_or_else(String::new, |h| format!(" (hint: {h})"))
}

/// Text of a plugin made fit for a terminal: control characters gone, newlines kept as ` | `, cut at `limit` bytes.
pub(crate) fn clean(text: &str, limit: u64) -> String {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut out = String::with_capacity(text.len().min(limit));
    for c in text.chars() {
        if out.len() >= limit {
            out.push('…');
            break;
        }
        match c {
            '\n' => out.push_str(" | "),
            '\t' => out.push(' '),
            c if c.is_control() || is_bidi(c) => {}
            c => out.push(c),
        }
    }
    out
}

/// Direction overrides can make a message read as something else.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// What a failed call was, in the crate's terms.
pub(crate) struct Failure<'a> {
    pub(crate) plugin: &'a str,
    pub(crate) function: &'static str,
    pub(crate) scope: String,
    pub(crate) fuel: u64,
    pub(crate) epoch_ms: u64,
    pub(crate) stack: u64,
    pub(crate) handles: u64,
    pub(crate) hostcall_bytes: u64,
    /// Last warning that the guest logged in this call; its panic message, if it panicked.
    pub(crate) last_words: Option<String>,
}

impl Failure<'_> {
    pub(crate) fn explain(self, error: &wasmtime::Error) -> Error {
        let (plugin, function) = (self.plugin.to_string(), self.function);
        let limit = |name, limit, message: &str| Error::Limit {
            plugin: plugin.clone(),
            function,
            scope: self.scope.clone(),
            name,
            limit,
            message: message.to_string(),
        };
        if let Some(hit) = error.downcast_ref::<LimitHit>() {
            return limit(hit.name, hit.limit, &hit.message);
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::OutOfFuel) => return limit("fuel", self.fuel, "the call ran that many instructions without an end"),
            Some(Trap::Interrupt) => return limit("epoch-ms", self.epoch_ms, "the call took longer"),
            Some(Trap::StackOverflow) => return limit("stack", self.stack, "calls nest too deep"),
            _ => {}
        }
        // wasmtime gives these two no type of their own.
        let root = error.root_cause().to_string();
        if root.contains("handle limit") {
            return limit("handles", self.handles, "too many values are alive at once");
        }
        if root.contains("fuel allocated for hostcalls") {
            return limit("hostcall-bytes", self.hostcall_bytes, "one call hands over more than that");
        }
        if root.contains("resource limit exceeded") || root.contains("count too high") {
            return Error::Trap { plugin, function, scope: self.scope, message: clean(&root, 400) };
        }
        let message = match (error.downcast_ref::<Trap>(), self.last_words) {
            (Some(Trap::UnreachableCodeReached), Some(words)) => format!("panicked: {words}"),
            (Some(Trap::UnreachableCodeReached), None) => "panicked (a WASM `unreachable` ran)".to_string(),
            (Some(trap), _) => format!("trapped: {trap}"),
            (None, _) => clean(&root, 1000),
        };
        Error::Trap { plugin, function, scope: self.scope, message }
    }
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn plugin_text_cannot_reach_the_terminal() {
        assert_eq!(clean("a\x1b[31mb\r\nc\u{202e}d", 100), "a[31mb | cd");
        assert_eq!(clean("xxxxx", 3), "xxx…");
    }
}
