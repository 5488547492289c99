//! Frequencies of the rotary embedding (Su et al. 2021): plain, linear interpolation (Chen et al. 2023), Llama 3's, and
//! YaRN (Peng et al. 2023), in the formulas of Hugging Face's `modeling_rope_utils`.

use std::f64::consts::PI;

use swift_sdk::prelude::*;

use crate::Llama;

config! {
    /// Rotary base and scaling. The scalings use different fields.
    pub struct RopeParameters {
        /// "default", "linear", "llama3" or "yarn".
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
        /// yarn: factor of cosine and sine.
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

/// What the host needs to turn queries and keys.
pub fn spec(model: &Llama) -> Result<RopeSpec> {
    let rope = model.rope_parameters.clone().or_else(|| model.rope_scaling.clone()).unwrap_or_default();
    let theta = rope.rope_theta.or(model.rope_theta).unwrap_or(10_000.0);
    let rotary = (model.head_dim() as f64 * rope.partial_rotary_factor.unwrap_or(1.0)) as u64;
    let plain: Vec<f64> = (0..rotary / 2).map(|i| theta.powf(-2.0 * i as f64 / rotary as f64)).collect();
    let kind = rope.rope_type.as_deref().or(rope.r#type.as_deref()).unwrap_or("default");
    let mut attn_scale = 1.0;
    let inv_freq = match kind {
        "default" => plain,
        "linear" => {
            let factor = need(rope.factor, kind, "factor")?;
            plain.into_iter().map(|f| f / factor).collect()
        }
        "llama3" => llama3(&plain, &rope)?,
        "yarn" => {
            attn_scale = attention_factor(&rope, yarn_factor(model, &rope)?);
            yarn(&plain, theta, model, &rope)?
        }
        other => {
            return Err(Error::config(format!("rope_type `{other}` is not known"))
                .hint("this plugin knows `default`, `linear`, `llama3` and `yarn`"));
        }
    };
    let inv_freq = inv_freq.into_iter().map(|f| f as f32).collect();
    Ok(RopeSpec { inv_freq, layout: RopeLayout::Halves, attn_scale: attn_scale as f32, sections: Vec::new() })
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

fn original_context(model: &Llama, rope: &RopeParameters) -> f64 {
    rope.original_max_position_embeddings.unwrap_or(model.max_position_embeddings) as f64
}

fn yarn_factor(model: &Llama, rope: &RopeParameters) -> Result<f64> {
    let implied = rope.original_max_position_embeddings.map(|n| model.max_position_embeddings as f64 / n as f64);
    need(rope.factor.or(implied), "yarn", "factor")
}

/// Equation 22 of the paper: 0.1·ln(s) + 1.
fn attention_factor(rope: &RopeParameters, factor: f64) -> f64 {
    let at = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    match (rope.attention_factor, rope.mscale, rope.mscale_all_dim) {
        (Some(given), ..) => given,
        (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => at(mscale) / at(all),
        _ => at(1.0),
    }
}

/// Section 3.2, "NTK-by-parts": dimensions that turn often keep their frequency, slow ones are interpolated.
fn yarn(plain: &[f64], theta: f64, model: &Llama, rope: &RopeParameters) -> Result<Vec<f64>> {
    let factor = yarn_factor(model, rope)?;
    let context = original_context(model, rope);
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
    use super::*;

    /// Expected numbers from the formulas of `modeling_rope_utils`, heads of 12.
    fn check(parameters: &str, inv_freq: [f64; 6], attn_scale: f32) {
        let config = format!(r#"{{"hidden_size": 48, "num_attention_heads": 4, "rope_parameters": {parameters}}}"#);
        let spec = spec(&Llama::parse(&config).expect("a configuration")).expect("a specification");
        for (got, want) in spec.inv_freq.iter().zip(inv_freq) {
            assert!((f64::from(*got) - want).abs() <= 1e-6 * want, "{got} is not {want}");
        }
        assert!((spec.attn_scale - attn_scale).abs() < 1e-6);
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
        let new = r#"{"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}"#;
        let old = r#"{"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "head_dim": null}"#;
        let inv_freq = |config| spec(&Llama::parse(config).expect("a configuration")).expect("a specification").inv_freq;
        assert_eq!(inv_freq(new), inv_freq(old));
    }

    #[test]
    fn unknown_scalings_are_refused() {
        let model = Llama::parse(r#"{"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}"#).expect("a configuration");
        assert!(spec(&model).is_err_and(|e| e.message.contains("dynamic")));
    }
}
