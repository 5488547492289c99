//! Checks of declarations that plugins answer with. Names end up in files and messages, sizes in allocations, so both are refused here
//! rather than wherever they would first hurt.

use std::collections::{HashMap, HashSet};

use crate::decl::{Init, ParamDecl};
use crate::limits::LimitConfig;

type Check = Result<(), String>;

/// A name: not empty, printable, of bounded length.
pub(crate) fn name(what: &str, name: &str, limits: &LimitConfig) -> Check {
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(format!("a {what} is named `{name}`; names are not empty and hold no control characters"));
    }
    if name.len() as u64 > limits.string_bytes {
        return Err(format!("a {what} name has {} bytes (limit `string-bytes` = {})", name.len(), limits.string_bytes));
    }
    Ok(())
}

/// A count against a limit.
pub(crate) fn count(what: &str, number: usize, limit: &str, value: u64) -> Check {
    if number as u64 > value { Err(format!("{number} {what} (limit `{limit}` = {value})")) } else { Ok(()) }
}

/// Sizes: at least one element, fewer than 2^40, and no more axes than the limit.
pub(crate) fn shape(owner: &str, shape: &[u64], limits: &LimitConfig) -> Check {
    count(&format!("axes of `{owner}`"), shape.len(), "rank", limits.rank)?;
    let elements = shape.iter().try_fold(1u64, |p, &d| p.checked_mul(d));
    match elements {
        Some(n) if n > 0 && n < 1 << 40 => Ok(()),
        _ => Err(format!("`{owner}` has the shape {shape:?}; sizes are positive and their product is below 2^40")),
    }
}

/// A list of declared parameters: unique names, sane shapes, finite starts, ties and copies to parameters that exist and fit.
pub(crate) fn params(what: &str, params: &[ParamDecl], limits: &LimitConfig) -> Check {
    count(what, params.len(), "params", limits.params)?;
    let mut by_name: HashMap<&str, &ParamDecl> = HashMap::new();
    for p in params {
        name("parameter", &p.name, limits)?;
        shape(&p.name, &p.shape, limits)?;
        count(&format!("tags of `{}`", p.name), p.tags.len(), "fan-in", 64)?;
        for tag in &p.tags {
            name("tag", tag, limits)?;
        }
        if by_name.insert(&p.name, p).is_some() {
            return Err(format!("parameter `{}` is declared twice", p.name));
        }
        match p.init {
            Init::Constant(v) | Init::Normal(v) | Init::Uniform(v) | Init::KaimingUniform(v) | Init::Orthogonal(v)
                if !v.is_finite() =>
            {
                return Err(format!("parameter `{}` starts from {v}", p.name));
            }
            Init::Normal(v) | Init::Uniform(v) if v < 0.0 => {
                return Err(format!("parameter `{}` starts with the negative spread {v}", p.name));
            }
            _ => {}
        }
    }
    for p in params {
        let copied = if let Init::CopyOf(from) = &p.init { Some(from) } else { None };
        for (verb, other) in [("is tied to", p.tied_to.as_ref()), ("starts as a copy of", copied)] {
            let Some(other) = other else { continue };
            let Some(target) = by_name.get(other.as_str()) else {
                return Err(format!("parameter `{}` {verb} `{other}`, which is not declared", p.name));
            };
            if target.shape != p.shape || target.name == p.name {
                return Err(format!("parameter `{}` {verb} `{other}`, which must be another one of the same shape", p.name));
            }
            // One step only, so that there are no cycles to follow.
            if target.tied_to.is_some() || matches!(target.init, Init::CopyOf(_)) {
                return Err(format!("parameter `{}` {verb} `{other}`, which is itself tied or a copy", p.name));
            }
        }
    }
    Ok(())
}

/// Names that must differ from each other.
pub(crate) fn distinct<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Check {
    let mut seen = HashSet::new();
    for n in names {
        if !seen.insert(n) {
            return Err(format!("{what} `{n}` is named twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decl(name: &str, shape: &[u64]) -> ParamDecl {
        ParamDecl { name: name.into(), shape: shape.to_vec(), init: Init::Zeros, tied_to: None, tags: Vec::new() }
    }

    #[test]
    fn declarations_that_make_no_sense_are_refused() {
        let limits = LimitConfig::default();
        let refused = |list: &[ParamDecl], want: &str| {
            let message = params("parameters", list, &limits).unwrap_err();
            assert!(message.contains(want), "{message}");
        };
        assert!(params("parameters", &[decl("a", &[2, 3]), decl("b", &[])], &limits).is_ok());
        refused(&[decl("", &[1])], "not empty");
        refused(&[decl("a\u{7}", &[1])], "control");
        refused(&[decl("a", &[0])], "positive");
        refused(&[decl("a", &[u64::MAX, 2])], "positive");
        refused(&[decl("a", &[1; 9])], "limit `rank`");
        refused(&[decl("a", &[1]), decl("a", &[1])], "twice");
        refused(&[ParamDecl { init: Init::Normal(f32::NAN), ..decl("a", &[1]) }], "NaN");
        refused(&[ParamDecl { tied_to: Some("b".into()), ..decl("a", &[1]) }], "not declared");
        refused(&[ParamDecl { tied_to: Some("a".into()), ..decl("a", &[1]) }], "another one");
        refused(&[ParamDecl { init: Init::CopyOf("b".into()), ..decl("a", &[1]) }, decl("b", &[2])], "same shape");
    }
}
