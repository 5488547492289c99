//! `--sampler NAME[:CONFIG]`.

use std::path::Path;
use std::str::FromStr;

use serde_json::{Map, Value};

/// A sampler plugin and its configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SamplerArg {
    /// Path or bundled name.
    pub(crate) plugin: String,
    /// A JSON object.
    pub(crate) config: Value,
}

impl FromStr for SamplerArg {
    type Err = String;

    /// `typical`, `typical:mass=0.5`, `regex:{"pattern": "(yes|no)"}`. Values are JSON where they can be, else text.
    fn from_str(text: &str) -> Result<SamplerArg, String> {
        let whole = || SamplerArg { plugin: text.into(), config: Value::Object(Map::new()) };
        if Path::new(text).exists() {
            return Ok(whole());
        }
        let Some((plugin, config)) = text.split_once(':') else { return Ok(whole()) };
        let config = match config.trim_start().starts_with('{') {
            true => serde_json::from_str(config).map_err(|e| format!("the configuration is not JSON: {e}"))?,
            false => {
                let pair = |pair: &str| {
                    let (key, value) = pair.split_once('=').ok_or_else(|| format!("`{pair}` is not key=value"))?;
                    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
                    Ok((key.trim().to_string(), value))
                };
                Value::Object(config.split(',').map(pair).collect::<Result<_, String>>()?)
            }
        };
        Ok(SamplerArg { plugin: plugin.into(), config })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn configurations_are_read_in_both_forms() {
        let of = |text: &str| text.parse::<SamplerArg>().map(|s| (s.plugin, s.config));
        assert_eq!(of("typical"), Ok(("typical".into(), json!({}))));
        assert_eq!(
            of("a/b.wasm:mass=0.5,deep=true,name=x"),
            Ok(("a/b.wasm".into(), json!({ "mass": 0.5, "deep": true, "name": "x" })))
        );
        assert_eq!(of(r#"regex:{"pattern": "a,b=:c"}"#), Ok(("regex".into(), json!({ "pattern": "a,b=:c" }))));
        assert_eq!(of("regex:pattern=(yes|no)"), Ok(("regex".into(), json!({ "pattern": "(yes|no)" }))));
        assert!(of("regex:{").unwrap_err().contains("not JSON"));
        assert!(of("typical:mass").unwrap_err().contains("key=value"));
    }
}
