//! The rotary embedding (Su et al. 2021) and the scalings of its frequencies: linear interpolation (Chen et al. 2023), dynamic NTK,
//! YaRN (Peng et al. 2023), LongRoPE (Ding et al. 2024) and Llama 3's, in the formulas of Hugging Face's `modeling_rope_utils`.

use std::f64::consts::PI;

use swift_sdk::model::{RopeLayout, RopeSpec};
use swift_sdk::{Error, Result, Value, concat, config, fail};

use crate::Net;

config! {
    /// Rotary base and scaling. The scalings use different fields.
    pub struct RopeParameters {
        /// "default", "linear", "dynamic", "yarn", "longrope" or "llama3".
        rope_type: Option<String> = None,
        /// The same in the oldest configurations.
        r#type: Option<String> = None,
        /// Base of the frequencies.
        rope_theta: Option<f64> = None,
        /// Share of each head that turns.
        partial_rotary_factor: Option<f64> = None,
        /// How many times longer the context becomes.
        factor: Option<f64> = None,
        /// Context length of the pre-training before scaling.
        original_max_position_embeddings: Option<u64> = None,
        /// llama3: wavelengths over the original context divided by this are interpolated.
        low_freq_factor: Option<f64> = None,
        /// llama3: wavelengths under the original context divided by this are kept.
        high_freq_factor: Option<f64> = None,
        /// longrope: divisors of the frequencies in sequences up to the original context.
        short_factor: Option<Vec<f64>> = None,
        /// longrope: divisors in longer sequences.
        long_factor: Option<Vec<f64>> = None,
        /// yarn, longrope: factor of cosine and sine.
        attention_factor: Option<f64> = None,
        /// yarn: dimensions that turn more often than this in the original context are kept.
        beta_fast: Option<f64> = None,
        /// yarn: dimensions that turn less often than this are interpolated.
        beta_slow: Option<f64> = None,
        /// yarn: numerator of the attention factor (DeepSeek).
        mscale: Option<f64> = None,
        /// yarn: denominator of the attention factor (DeepSeek).
        mscale_all_dim: Option<f64> = None,
        /// yarn: round the range of interpolated dimensions outwards.
        truncate: Option<bool> = None,
        ..
    }
}

/// Where a configuration says how positions turn queries and keys, in the spellings of the years.
#[derive(Clone, Copy, Debug, Default)]
pub struct RopeSource<'a> {
    /// `rope_parameters`, the newest.
    pub parameters: Option<&'a RopeParameters>,
    /// `rope_scaling`, the older one.
    pub scaling: Option<&'a RopeParameters>,
    /// `rope_theta` beside it.
    pub theta: Option<f64>,
    /// `partial_rotary_factor` beside it.
    pub partial: Option<f64>,
    /// Size of what turns: a head, or its rotary part.
    pub head_dim: u64,
    /// `max_position_embeddings`.
    pub max_positions: u64,
    /// `original_max_position_embeddings`, where it stands beside `rope_scaling` (Phi-3).
    pub original: Option<u64>,
}

/// How positions turn queries and keys.
#[derive(Clone, Debug)]
pub struct Rope {
    scaling: Scaling,
    /// Elements of a head that turn.
    rotary: u64,
    layout: RopeLayout,
    attn_scale: f64,
    /// Factor of the scores in DeepSeek's reading of YaRN, the square of its `mscale_all_dim` term; 1 elsewhere.
    pub score_scale: f64,
}

#[derive(Clone, Debug)]
enum Scaling {
    /// One set of frequencies.
    Fixed(Vec<f64>),
    /// The second set in sequences longer than `original`.
    Long { short: Vec<f64>, long: Vec<f64>, original: f64 },
    /// A base that grows with sequences longer than `context`.
    Dynamic { theta: f64, factor: f64, context: f64 },
}

impl Rope {
    /// Reads the parameters.
    ///
    /// # Errors
    /// For a scaling that is not known or lacks a number.
    pub fn new(source: RopeSource) -> Result<Rope> {
        let rope = source.parameters.or(source.scaling).cloned().unwrap_or_default();
        let theta = rope.rope_theta.or(source.theta).unwrap_or(10_000.0);
        let partial = rope.partial_rotary_factor.or(source.partial).unwrap_or(1.0);
        let rotary = (source.head_dim as f64 * partial) as u64;
        // As in the reference, an odd share turns one element more, by frequencies of the odd share.
        let pairs = rotary.div_ceil(2);
        if pairs == 0 || 2 * pairs > source.head_dim {
            return Err(Error::config(format!("{rotary} of {} elements of a head turn", source.head_dim))
                .hint("pairs turn; see `partial_rotary_factor` and `head_dim`"));
        }
        let plain: Vec<f64> = (0..pairs).map(|i| theta.powf(-2.0 * i as f64 / rotary as f64)).collect();
        let kind = rope.rope_type.as_deref().or(rope.r#type.as_deref()).unwrap_or("default");
        let context = Context { rope: &rope, source: &source };
        let mut attn_scale = 1.0;
        let mut score_scale = 1.0;
        let scaling = match kind {
            "default" => Scaling::Fixed(plain),
            "linear" => {
                let factor = need(rope.factor, kind, "factor")?;
                Scaling::Fixed(plain.into_iter().map(|f| f / factor).collect())
            }
            "dynamic" => {
                let factor = need(rope.factor, kind, "factor")?;
                Scaling::Dynamic { theta, factor, context: source.max_positions as f64 }
            }
            "llama3" => Scaling::Fixed(llama3(&plain, &rope)?),
            "yarn" => {
                let factor = context.yarn_factor()?;
                attn_scale = attention_factor(&rope, factor);
                score_scale = rope.mscale_all_dim.filter(|&m| m != 0.0).map_or(1.0, |m| mscale(factor, m).powi(2));
                Scaling::Fixed(yarn(&plain, theta, &context)?)
            }
            // The type's first name was "su".
            "longrope" | "su" => {
                let original = context.original();
                attn_scale = context.long_attention_factor();
                let divided = |factors: &Option<Vec<f64>>, name: &str| {
                    let factors = factors.as_ref().filter(|f| f.len() == plain.len()).ok_or_else(|| {
                        Error::config(format!("rope_type `{kind}` needs `{name}` with {} numbers", plain.len()))
                    })?;
                    Ok(plain.iter().zip(factors).map(|(f, by)| f / by).collect())
                };
                let (short, long) = (divided(&rope.short_factor, "short_factor")?, divided(&rope.long_factor, "long_factor")?);
                Scaling::Long { short, long, original }
            }
            other => {
                return Err(Error::config(format!("rope_type `{other}` is not known"))
                    .hint("known are `default`, `linear`, `dynamic`, `yarn`, `longrope` and `llama3`"));
            }
        };
        Ok(Rope { scaling, rotary, layout: RopeLayout::Halves, attn_scale, score_scale })
    }

    /// Neighbours turn together instead of halves.
    #[must_use]
    pub fn interleaved(self) -> Rope {
        Rope { layout: RopeLayout::Interleaved, ..self }
    }

    /// Turns x `[tokens, heads, head_dim]` by the tokens' positions; elements past the rotary ones stay.
    pub fn turn(&self, net: &Net, x: &Value) -> Value {
        match &self.scaling {
            Scaling::Fixed(frequencies) => net.rope(x, &self.spec(frequencies)),
            Scaling::Long { short, long, original } => {
                let is_long = length(net).gt(*original).to_f32();
                let (short, long) = (net.rope(x, &self.spec(short)), net.rope(x, &self.spec(long)));
                &short + (long - &short) * is_long
            }
            Scaling::Dynamic { theta, factor, context } => self.turn_dynamic(net, x, *theta, *factor, *context),
        }
    }

    fn spec(&self, frequencies: &[f64]) -> RopeSpec {
        let inv_freq = frequencies.iter().map(|&f| f as f32).collect();
        RopeSpec { inv_freq, layout: self.layout, attn_scale: self.attn_scale as f32, sections: Vec::new() }
    }

    /// "NTK-aware" interpolation whose base follows the length of the sequence, so that the frequencies are part of the graph.
    fn turn_dynamic(&self, net: &Net, x: &Value, theta: f64, factor: f64, context: f64) -> Value {
        if self.layout != RopeLayout::Halves {
            fail(Error::config("rope_type `dynamic` is not known for interleaved pairs"));
        }
        let (rotary, half) = (self.rotary as f64, self.rotary.div_ceil(2));
        let stretch = length(net).max(context) * (factor / context) - (factor - 1.0);
        // ln of the base, theta · stretch^(rotary / (rotary - 2)); frequency i is base^(-2i / rotary).
        let ln_base = stretch.log() * (rotary / (rotary - 2.0)) + theta.ln();
        let exponents: Vec<f32> = (0..half).map(|i| (-2.0 * i as f64 / rotary) as f32).collect();
        let frequencies = (Value::vector(&exponents) * ln_base).exp();
        let positions = net.input("positions").to_f32().reshape((net.tokens(), 1, 1));
        let angles = positions * frequencies;
        let (sin, cos) = (angles.sin(), angles.cos());
        let (a, b) = (x.slice(-1, 0, half), x.slice(-1, half, half));
        let turned = [&a * &cos - &b * &sin, &a * &sin + &b * &cos];
        match x.dim(-1).fixed().unwrap_or(0).saturating_sub(2 * half) {
            0 => concat(&[&turned[0], &turned[1]], -1),
            rest => concat(&[&turned[0], &turned[1], &x.slice(-1, 2 * half, rest)], -1),
        }
    }
}

/// Length of each token's sequence so far, `[tokens, 1, 1]`. (The reference takes the longest of the batch for all.)
fn length(net: &Net) -> Value {
    net.lengths().reshape((net.tokens(), 1, 1))
}

/// The parameters and what the rest of the configuration adds to them.
struct Context<'a> {
    rope: &'a RopeParameters,
    source: &'a RopeSource<'a>,
}

impl Context<'_> {
    fn original(&self) -> f64 {
        let original = self.rope.original_max_position_embeddings.or(self.source.original);
        original.unwrap_or(self.source.max_positions) as f64
    }

    /// How many times longer the context became.
    fn implied_factor(&self) -> Option<f64> {
        let original = self.rope.original_max_position_embeddings.or(self.source.original)?;
        Some(self.source.max_positions as f64 / original as f64)
    }

    fn yarn_factor(&self) -> Result<f64> {
        need(self.rope.factor.or_else(|| self.implied_factor()), "yarn", "factor")
    }

    /// LongRoPE, section 3.3: √(1 + ln s / ln of the original context).
    fn long_attention_factor(&self) -> f64 {
        let factor = self.rope.factor.or_else(|| self.implied_factor()).unwrap_or(1.0);
        let computed = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / self.original().ln()).sqrt() };
        self.rope.attention_factor.unwrap_or(computed)
    }
}

fn need(value: Option<f64>, kind: &str, name: &str) -> Result<f64> {
    value.ok_or_else(|| Error::config(format!("rope_type `{kind}` needs `{name}`")))
}

/// Long wavelengths are interpolated, short ones kept, those between blended.
fn llama3(plain: &[f64], rope: &RopeParameters) -> Result<Vec<f64>> {
    let factor = need(rope.factor, "llama3", "factor")?;
    let low = need(rope.low_freq_factor, "llama3", "low_freq_factor")?;
    let high = need(rope.high_freq_factor, "llama3", "high_freq_factor")?;
    let context = rope.original_max_position_embeddings.map(|n| n as f64);
    let context = need(context, "llama3", "original_max_position_embeddings")?;
    let scaled = plain.iter().map(|&f| {
        // Turns of this dimension over the original context.
        let turns = context * f / (2.0 * PI);
        match turns {
            t if t < low => f / factor,
            t if t > high => f,
            t => {
                let kept = (t - low) / (high - low);
                (1.0 - kept) * f / factor + kept * f
            }
        }
    });
    Ok(scaled.collect())
}

fn mscale(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}

/// Equation 22 of the paper: 0.1·ln(s) + 1.
fn attention_factor(rope: &RopeParameters, factor: f64) -> f64 {
    match (rope.attention_factor, rope.mscale, rope.mscale_all_dim) {
        (Some(given), ..) => given,
        (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
            self::mscale(factor, mscale) / self::mscale(factor, all)
        }
        _ => self::mscale(factor, 1.0),
    }
}

/// Section 3.2, "NTK-by-parts": dimensions that turn often keep their frequency, slow ones are interpolated.
fn yarn(plain: &[f64], theta: f64, context: &Context) -> Result<Vec<f64>> {
    let factor = context.yarn_factor()?;
    let rope = context.rope;
    let context = context.original();
    let rotary = 2.0 * plain.len() as f64;
    // The dimension that turns so many times over the original context.
    let dimension = |turns: f64| rotary * (context / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (dimension(rope.beta_fast.unwrap_or(32.0)), dimension(rope.beta_slow.unwrap_or(1.0)));
    if rope.truncate.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(rotary - 1.0));
    if low == high {
        high += 0.001; // As in the reference: no division by zero.
    }
    let blended = plain.iter().enumerate().map(|(i, &f)| {
        let slow = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        f / factor * slow + f * (1.0 - slow)
    });
    Ok(blended.collect())
}

#[cfg(test)]
mod tests {
    use swift_sdk::Config;

    use super::*;

    fn rope(parameters: &str) -> Result<Rope> {
        let parameters = RopeParameters::parse(parameters).expect("parameters");
        Rope::new(RopeSource { parameters: Some(&parameters), head_dim: 12, max_positions: 2048, ..RopeSource::default() })
    }

    fn fixed(rope: &Rope) -> &[f64] {
        let Scaling::Fixed(frequencies) = &rope.scaling else { panic!("{rope:?}") };
        frequencies
    }

    /// Expected numbers from the formulas of `modeling_rope_utils`, heads of 12.
    fn check(parameters: &str, frequencies: [f64; 6], attn_scale: f64) {
        let rope = rope(parameters).expect("a rope");
        for (got, want) in fixed(&rope).iter().zip(frequencies) {
            assert!((got - want).abs() <= 1e-6 * want, "{got} is not {want}");
        }
        assert!((rope.attn_scale - attn_scale).abs() < 1e-6);
    }

    #[test]
    fn scalings_agree_with_the_reference() {
        let plain = [1.0, 0.215_443_47, 0.046_415_888, 0.01, 0.002_154_434_7, 0.000_464_158_88];
        check(r#"{"rope_theta": 10000.0}"#, plain, 1.0);
        check(r#"{"rope_type": "linear", "factor": 2.0}"#, plain.map(|f| f / 2.0), 1.0);
        check(
            r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}"#,
            [1.00000000e+00, 1.34652168e-01, 1.16039721e-02, 2.50000000e-03, 5.38608673e-04, 1.16039721e-04],
            1.1386294,
        );
        let llama3 = r#"{"rope_type": "llama3", "rope_theta": 100000.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}"#;
        check(llama3, [1.00000000e+00, 3.66949817e-02, 5.38608673e-03, 7.90569415e-04, 1.16039721e-04, 1.70323017e-05], 1.0);
    }

    #[test]
    fn older_configurations_say_the_same() {
        let new = rope(r#"{"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}"#).expect("a rope");
        let scaling = RopeParameters::parse(r#"{"type": "linear", "factor": 2.0}"#).expect("parameters");
        let source = RopeSource { scaling: Some(&scaling), theta: Some(500.0), head_dim: 12, ..RopeSource::default() };
        assert_eq!(fixed(&new), fixed(&Rope::new(source).expect("a rope")));
    }

    #[test]
    fn long_rope_has_two_sets_of_frequencies() {
        let numbers = "[1, 1, 1, 2, 2, 2]";
        let text = format!(
            r#"{{"type": "longrope", "short_factor": {numbers}, "long_factor": {numbers}, "original_max_position_embeddings": 512}}"#
        );
        let rope = rope(&text).expect("a rope");
        assert!(matches!(&rope.scaling, Scaling::Long { long, original, .. } if long[3] == 0.005 && *original == 512.0));
        assert!((rope.attn_scale - (1.0 + 4f64.ln() / 512f64.ln()).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn bad_parameters_are_refused() {
        for (parameters, says) in [
            (r#"{"rope_type": "spiral"}"#, "spiral"),
            (r#"{"rope_type": "linear"}"#, "factor"),
            (r#"{"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}"#, "6 numbers"),
            (r#"{"partial_rotary_factor": 0.05}"#, "0 of 12"),
        ] {
            assert!(rope(parameters).is_err_and(|e| e.message.contains(says)), "{parameters}");
        }
    }
}
