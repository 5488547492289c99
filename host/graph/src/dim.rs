//! Symbolic dimensions: canonical polynomials over named symbols.
//!
//! `2*b + b` and `3*b` are the same [`Dim`], so shape equality is structural equality. Division, remainder, minimum and maximum
//! that do not simplify become opaque atoms, themselves canonical. All arithmetic is checked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::{Error, Result};

/// Index into a graph's [`SymbolTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SymbolId(pub u32);

/// Most terms a polynomial may have; real models stay under five.
const MAX_TERMS: usize = 32;
/// Highest total degree of a monomial.
const MAX_DEGREE: usize = 6;
/// Deepest nesting of opaque atoms.
const MAX_DEPTH: u32 = 8;

/// What [`Dim::apply`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DimOp {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
    /// floor(a / b)
    FloorDiv,
    /// ceil(a / b)
    CeilDiv,
    /// a mod b
    Mod,
    /// min(a, b)
    Min,
    /// max(a, b)
    Max,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Atom {
    Symbol(SymbolId),
    /// Only the last five operations of [`DimOp`].
    Opaque(DimOp, Arc<(Dim, Dim)>),
}

/// Sorted factors of a product; empty is the constant one.
type Monomial = Vec<Atom>;

/// A dimension: an integer polynomial over symbols. Its value under a binding is never negative.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim {
    /// Sorted by monomial, no zero coefficients.
    terms: Vec<(Monomial, i64)>,
}

impl Dim {
    /// A known size. Sizes past `i64::MAX` saturate there and fail in the first arithmetic.
    pub fn fixed(size: u64) -> Dim {
        let value = i64::try_from(size).unwrap_or(i64::MAX);
        Dim { terms: if value == 0 { Vec::new() } else { vec![(Vec::new(), value)] } }
    }

    /// A symbol.
    pub fn symbol(id: SymbolId) -> Dim {
        Dim { terms: vec![(vec![Atom::Symbol(id)], 1)] }
    }

    /// The size, if no symbol takes part.
    pub fn as_fixed(&self) -> Option<u64> {
        match self.terms.as_slice() {
            [] => Some(0),
            [(m, c)] if m.is_empty() => u64::try_from(*c).ok(),
            _ => None,
        }
    }

    /// The symbol, if the dimension is exactly one symbol.
    pub fn as_symbol(&self) -> Option<SymbolId> {
        match self.terms.as_slice() {
            [(m, 1)] => match m.as_slice() {
                [Atom::Symbol(id)] => Some(*id),
                _ => None,
            },
            _ => None,
        }
    }

    /// Sum.
    ///
    /// # Errors
    /// On overflow or too many terms.
    pub fn add(&self, other: &Dim) -> Result<Dim> {
        self.combine(other, 1)
    }

    /// Difference. It must not be negative under any binding; evaluation checks that.
    ///
    /// # Errors
    /// On overflow or too many terms, or when both are fixed and the difference is negative.
    pub fn sub(&self, other: &Dim) -> Result<Dim> {
        self.combine(other, -1)
    }

    fn combine(&self, other: &Dim, sign: i64) -> Result<Dim> {
        let mut map: BTreeMap<Monomial, i64> = self.terms.iter().cloned().collect();
        for (m, c) in &other.terms {
            let slot = map.entry(m.clone()).or_insert(0);
            *slot = c.checked_mul(sign).and_then(|c| slot.checked_add(c)).ok_or_else(overflow)?;
        }
        Dim::from_map(map)
    }

    /// Product.
    ///
    /// # Errors
    /// On overflow, too many terms or too high a degree.
    pub fn mul(&self, other: &Dim) -> Result<Dim> {
        let mut map: BTreeMap<Monomial, i64> = BTreeMap::new();
        for (ma, ca) in &self.terms {
            for (mb, cb) in &other.terms {
                let mut m = ma.clone();
                m.extend(mb.iter().cloned());
                if m.len() > MAX_DEGREE {
                    return Err(Error::Dim(format!("is a product of more than {MAX_DEGREE} symbols")));
                }
                m.sort();
                let c = ca.checked_mul(*cb).ok_or_else(overflow)?;
                let slot = map.entry(m).or_insert(0);
                *slot = slot.checked_add(c).ok_or_else(overflow)?;
            }
        }
        Dim::from_map(map)
    }

    /// Any of the dimension operations.
    ///
    /// # Errors
    /// On overflow, division by zero, or when the expression grows past the limits of this module.
    pub fn apply(op: DimOp, a: &Dim, b: &Dim) -> Result<Dim> {
        match op {
            DimOp::Add => return a.add(b),
            DimOp::Sub => return a.sub(b),
            DimOp::Mul => return a.mul(b),
            _ => {}
        }
        if let (Some(x), Some(y)) = (a.as_fixed(), b.as_fixed()) {
            return Ok(Dim::fixed(evaluate(op, x as i64, y as i64)? as u64));
        }
        match op {
            DimOp::Min | DimOp::Max if a == b => return Ok(a.clone()),
            DimOp::FloorDiv | DimOp::CeilDiv | DimOp::Mod => {
                if let Some(exact) = b.as_fixed().and_then(|d| a.exact_div(d as i64)) {
                    return Ok(if op == DimOp::Mod { Dim::fixed(0) } else { exact });
                }
                if let Some(exact) = a.exact_div_dim(b) {
                    return Ok(if op == DimOp::Mod { Dim::fixed(0) } else { exact });
                }
            }
            _ => {}
        }
        let (a, b) = if matches!(op, DimOp::Min | DimOp::Max) && b < a { (b, a) } else { (a, b) };
        let dim = Dim { terms: vec![(vec![Atom::Opaque(op, Arc::new((a.clone(), b.clone())))], 1)] };
        if dim.depth() > MAX_DEPTH {
            return Err(Error::Dim(format!("expression is nested more than {MAX_DEPTH} deep")));
        }
        Ok(dim)
    }

    /// `self / divisor` when every coefficient divides evenly.
    fn exact_div(&self, divisor: i64) -> Option<Dim> {
        if divisor <= 0 {
            return None;
        }
        let terms = self.terms.iter().map(|(m, c)| (c % divisor == 0).then(|| (m.clone(), c / divisor)));
        Some(Dim { terms: terms.collect::<Option<Vec<_>>>()? })
    }

    /// `self / divisor` when the divisor is a single term that divides every term of `self`. Used to infer a reshape's free
    /// dimension, for example `12*n / n`.
    pub fn exact_div_dim(&self, divisor: &Dim) -> Option<Dim> {
        let [(dm, dc)] = divisor.terms.as_slice() else { return None };
        let mut terms = Vec::with_capacity(self.terms.len());
        for (m, c) in &self.terms {
            if c % dc != 0 {
                return None;
            }
            let mut rest = m.clone();
            for atom in dm {
                let at = rest.iter().position(|a| a == atom)?;
                rest.remove(at);
            }
            terms.push((rest, c / dc));
        }
        terms.sort();
        Some(Dim { terms })
    }

    /// The value under `bindings`.
    ///
    /// # Errors
    /// When a symbol is unbound, the value is negative, or arithmetic overflows.
    pub fn eval(&self, bindings: &Bindings) -> Result<u64> {
        let value = self.eval_signed(bindings)?;
        u64::try_from(value).map_err(|_| Error::Dim(format!("`{self}` is {value}, which is negative")))
    }

    fn eval_signed(&self, bindings: &Bindings) -> Result<i64> {
        let mut sum = 0i64;
        for (m, c) in &self.terms {
            let mut product = *c;
            for atom in m {
                let v = match atom {
                    Atom::Symbol(id) => bindings.get(*id)?,
                    Atom::Opaque(op, args) => evaluate(*op, args.0.eval_signed(bindings)?, args.1.eval_signed(bindings)?)?,
                };
                product = product.checked_mul(v).ok_or_else(overflow)?;
            }
            sum = sum.checked_add(product).ok_or_else(overflow)?;
        }
        Ok(sum)
    }

    /// The same polynomial over other symbols; `name` is asked in the order in which they stand.
    pub(crate) fn rename(&self, name: &mut dyn FnMut(SymbolId) -> SymbolId) -> Dim {
        let atom = |a: &Atom, name: &mut dyn FnMut(SymbolId) -> SymbolId| match a {
            Atom::Symbol(id) => Atom::Symbol(name(*id)),
            Atom::Opaque(op, args) => {
                let (a, b) = (args.0.rename(name), args.1.rename(name));
                let swap = matches!(op, DimOp::Min | DimOp::Max) && b < a;
                Atom::Opaque(*op, Arc::new(if swap { (b, a) } else { (a, b) }))
            }
        };
        let mut terms = Vec::with_capacity(self.terms.len());
        for (m, c) in &self.terms {
            let mut m: Monomial = m.iter().map(|a| atom(a, name)).collect();
            m.sort();
            terms.push((m, *c));
        }
        terms.sort();
        Dim { terms }
    }

    fn from_map(map: BTreeMap<Monomial, i64>) -> Result<Dim> {
        let terms: Vec<_> = map.into_iter().filter(|(_, c)| *c != 0).collect();
        if terms.len() > MAX_TERMS {
            return Err(Error::Dim(format!("has more than {MAX_TERMS} terms")));
        }
        let dim = Dim { terms };
        match dim.terms.as_slice() {
            [(m, c)] if m.is_empty() && *c < 0 => Err(Error::Dim(format!("is {c}, which is negative"))),
            _ => Ok(dim),
        }
    }

    fn depth(&self) -> u32 {
        let atoms = self.terms.iter().flat_map(|(m, _)| m);
        atoms
            .map(|a| match a {
                Atom::Symbol(_) => 0,
                Atom::Opaque(_, args) => 1 + args.0.depth().max(args.1.depth()),
            })
            .max()
            .unwrap_or(0)
    }
}

fn overflow() -> Error {
    Error::Dim("arithmetic overflows 63 bits".into())
}

fn evaluate(op: DimOp, a: i64, b: i64) -> Result<i64> {
    let value = match op {
        DimOp::Add => a.checked_add(b),
        DimOp::Sub => a.checked_sub(b),
        DimOp::Mul => a.checked_mul(b),
        DimOp::Min => Some(a.min(b)),
        DimOp::Max => Some(a.max(b)),
        DimOp::FloorDiv | DimOp::CeilDiv | DimOp::Mod if b <= 0 => {
            return Err(Error::Dim(format!("expression divides {a} by {b}")));
        }
        DimOp::FloorDiv => Some(a.div_euclid(b)),
        DimOp::CeilDiv => a.checked_add(b - 1).map(|s| s.div_euclid(b)),
        DimOp::Mod => Some(a.rem_euclid(b)),
    };
    value.ok_or_else(overflow)
}

impl From<u64> for Dim {
    fn from(size: u64) -> Dim {
        Dim::fixed(size)
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Symbol(id) => write!(f, "{}", well_known_name(*id)),
            Atom::Opaque(op, args) => {
                let name = match op {
                    DimOp::FloorDiv => "floordiv",
                    DimOp::CeilDiv => "ceildiv",
                    DimOp::Mod => "mod",
                    DimOp::Min => "min",
                    _ => "max",
                };
                write!(f, "{name}({}, {})", args.0, args.1)
            }
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        for (i, (m, c)) in self.terms.iter().enumerate() {
            if i > 0 {
                f.write_str(if *c < 0 { " - " } else { " + " })?;
            } else if *c < 0 {
                f.write_str("-")?;
            }
            let c = c.unsigned_abs();
            if m.is_empty() || c != 1 {
                write!(f, "{c}")?;
            }
            for (j, atom) in m.iter().enumerate() {
                f.write_str(if j > 0 || c != 1 { "*" } else { "" })?;
                write!(f, "{atom}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Symbols that every table starts with, in this order, so that their ids are constants.
impl SymbolId {
    /// Tokens in the packed batch.
    pub const TOKENS: SymbolId = SymbolId(0);
    /// Sequences in the packed batch.
    pub const SEQUENCES: SymbolId = SymbolId(1);
    /// Sequences that may have places in a cache.
    pub const SLOTS: SymbolId = SymbolId(2);
    /// Pages of a cache that one sequence may have.
    pub const CAPACITY: SymbolId = SymbolId(3);
    /// Pairs (chosen, rejected) in a preference batch.
    pub const PAIRS: SymbolId = SymbolId(4);
    /// Pages of a cache, of all sequences together.
    pub const PAGES: SymbolId = SymbolId(5);
}

const WELL_KNOWN: [&str; 6] = ["n", "b", "slots", "capacity", "pairs", "pages"];

fn well_known_name(id: SymbolId) -> String {
    WELL_KNOWN.get(id.0 as usize).map_or_else(|| format!("s{}", id.0), |s| (*s).to_string())
}

/// What is known of a symbol.
#[derive(Clone, Debug, PartialEq)]
pub struct SymbolInfo {
    /// Name in messages.
    pub name: String,
    /// Smallest value.
    pub lo: u64,
    /// Largest value, if bounded.
    pub hi: Option<u64>,
    /// Every value is a multiple of this.
    pub multiple_of: u64,
}

/// The symbols of one graph.
#[derive(Clone, Debug, PartialEq)]
pub struct SymbolTable {
    symbols: Vec<SymbolInfo>,
}

impl Default for SymbolTable {
    fn default() -> SymbolTable {
        let known = |name: &&str| SymbolInfo { name: (*name).to_string(), lo: 1, hi: None, multiple_of: 1 };
        SymbolTable { symbols: WELL_KNOWN.iter().map(known).collect() }
    }
}

impl SymbolTable {
    /// Adds a symbol.
    pub fn add(&mut self, info: SymbolInfo) -> SymbolId {
        self.symbols.push(info);
        SymbolId(self.symbols.len() as u32 - 1)
    }

    /// Looks a symbol up.
    pub fn get(&self, id: SymbolId) -> Option<&SymbolInfo> {
        self.symbols.get(id.0 as usize)
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Never: the well-known symbols are always there.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }
}

/// Values of symbols for one run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bindings {
    values: BTreeMap<SymbolId, u64>,
}

impl Bindings {
    /// No symbol bound.
    pub fn new() -> Bindings {
        Bindings::default()
    }

    /// Binds one symbol.
    #[must_use]
    pub fn with(mut self, id: SymbolId, value: u64) -> Bindings {
        self.values.insert(id, value);
        self
    }

    /// Binds one symbol in place.
    pub fn set(&mut self, id: SymbolId, value: u64) {
        self.values.insert(id, value);
    }

    fn get(&self, id: SymbolId) -> Result<i64> {
        let value = self.values.get(&id).ok_or_else(|| Error::Bind(format!("symbol `{}` has no value", well_known_name(id))))?;
        i64::try_from(*value).map_err(|_| overflow())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n() -> Dim {
        Dim::symbol(SymbolId::TOKENS)
    }

    fn b() -> Dim {
        Dim::symbol(SymbolId::SEQUENCES)
    }

    #[test]
    fn equal_polynomials_are_equal_values() {
        let two_b = Dim::fixed(2).mul(&b()).unwrap();
        assert_eq!(two_b.add(&b()).unwrap(), Dim::fixed(3).mul(&b()).unwrap());
        assert_eq!(n().mul(&b()).unwrap(), b().mul(&n()).unwrap());
        assert_eq!(n().sub(&n()).unwrap(), Dim::fixed(0));
        assert_eq!(Dim::apply(DimOp::Max, &n(), &b()).unwrap(), Dim::apply(DimOp::Max, &b(), &n()).unwrap());
    }

    #[test]
    fn division_simplifies_or_stays_opaque() {
        let twelve_n = Dim::fixed(12).mul(&n()).unwrap();
        assert_eq!(Dim::apply(DimOp::FloorDiv, &twelve_n, &Dim::fixed(4)).unwrap(), Dim::fixed(3).mul(&n()).unwrap());
        assert_eq!(twelve_n.exact_div_dim(&n()), Some(Dim::fixed(12)));
        let half = Dim::apply(DimOp::CeilDiv, &n(), &Dim::fixed(2)).unwrap();
        assert_eq!(half.eval(&Bindings::new().with(SymbolId::TOKENS, 7)).unwrap(), 4);
    }

    #[test]
    fn overflow_and_negatives_are_errors() {
        let big = Dim::fixed(u64::MAX);
        assert!(big.mul(&Dim::fixed(2)).is_err());
        assert!(big.add(&big).is_err());
        assert!(Dim::fixed(1).sub(&Dim::fixed(2)).is_err());
        assert!(Dim::apply(DimOp::FloorDiv, &Dim::fixed(1), &Dim::fixed(0)).is_err());
        let less = n().sub(&Dim::fixed(9)).unwrap();
        assert!(less.eval(&Bindings::new().with(SymbolId::TOKENS, 3)).is_err());
        assert!(n().eval(&Bindings::new()).is_err());
    }

    #[test]
    fn growth_is_bounded() {
        let mut d = n();
        for _ in 0..100 {
            match Dim::apply(DimOp::Mod, &d, &b()) {
                Ok(next) => d = next,
                Err(e) => return assert!(e.to_string().contains("nested")),
            }
        }
        panic!("nesting was never refused");
    }
}
