//! StableLM (Bellagente et al. 2024, section 3): layer norms, a gated feed-forward layer, a quarter of each head turns; the 12B variant
//! has normed queries and keys and its two parts side by side. Names are those of `StableLmForCausalLM`.

use blocks::{Activation, Architecture, GatedFeedForward, Heads, Linear, Net, Norm, Rope, RopeParameters, RopeSource, Stack};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// Its name in transformers.
        StableLm = "stablelm",
        /// Its name before it was part of transformers.
        Epoch = "stablelm_epoch",
    }
}

config! {
    /// StableLM decoders.
    pub struct StableLm {
        /// The family.
        model_type: Kind = Kind::StableLm,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 50304,
        /// Width of the residual stream.
        hidden_size: u64 = 2560,
        /// Width of the feed-forward layer.
        intermediate_size: u64 = 6912,
        /// Number of blocks.
        num_hidden_layers: u32 = 32,
        /// Query heads.
        num_attention_heads: u64 = 32,
        /// Key and value heads.
        num_key_value_heads: u64 = 32,
        /// Activation of the feed-forward layer.
        hidden_act: Activation = Activation::Silu,
        /// Added to the variance in norms.
        layer_norm_eps: f64 = 1e-5,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 4096,
        /// The output projection is the token table.
        tie_word_embeddings: bool = false,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Biases in q, k and v.
        use_qkv_bias: bool = false,
        /// Norm queries and keys, each head by weights of its own.
        qk_layernorm: bool = false,
        /// Attention and feed-forward layer read the same normed stream.
        use_parallel_residual: bool = false,
        /// Share of each head that turns, where rope_parameters does not say.
        partial_rotary_factor: f64 = 0.25,
        /// Base of the rotary frequencies, where rope_parameters does not say.
        rope_theta: Option<f64> = None,
        /// Rotary scaling in older configurations.
        rope_scaling: Option<RopeParameters> = None,
        /// Rotary base and scaling in newer configurations.
        rope_parameters: Option<RopeParameters> = None,
        ..
    }
}

impl StableLm {
    fn heads(&self) -> [u64; 3] {
        let heads = self.num_attention_heads;
        [heads, self.num_key_value_heads, self.hidden_size / heads.max(1)]
    }

    fn rope(&self) -> Result<Rope> {
        Rope::new(RopeSource {
            parameters: self.rope_parameters.as_ref(),
            scaling: self.rope_scaling.as_ref(),
            theta: self.rope_theta,
            partial: Some(self.partial_rotary_factor),
            head_dim: self.heads()[2],
            max_positions: self.max_position_embeddings,
            ..RopeSource::default()
        })
    }

    /// x `[n, heads · size]` as heads, each normed by its own weight.
    fn normed_heads(&self, net: &Net, name: &str, x: &Value, heads: u64) -> Value {
        let size = self.heads()[2];
        if !self.qk_layernorm {
            return x.clone();
        }
        let parts: Vec<String> = (0..heads).map(|head| format!("{name}.norms.{head}.weight")).collect();
        let weight = net.stacked(&format!("{name}.weight"), &parts, &[heads, size], Init::Ones, &["norm", "no-decay"]);
        let apart = x.reshape((net.tokens(), heads, size)).layer_norm(None, None, self.layer_norm_eps);
        (apart * weight).reshape((net.tokens(), heads * size))
    }

    fn attention(&self, net: &Net, heads: &Heads, x: &Value) -> Value {
        let (d, bias) = (self.hidden_size, self.use_qkv_bias);
        scope("self_attn", || {
            let q = net.linear("q_proj", x, Linear::new(d, heads.d_query()).bias(bias));
            let k = net.linear("k_proj", x, Linear::new(d, heads.d_key()).bias(bias));
            let v = net.linear("v_proj", x, Linear::new(d, heads.d_key()).bias(bias));
            let q = self.normed_heads(net, "q_layernorm", &q, heads.query);
            let k = self.normed_heads(net, "k_layernorm", &k, heads.key);
            net.linear("o_proj", &heads.attend(net, &q, &k, &v), Linear::new(heads.d_query(), d))
        })
    }
}

impl Architecture for StableLm {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        Heads::check(self.heads())?;
        let rope = self.rope()?;
        let d = self.hidden_size;
        let norm = Norm::layer(d, self.layer_norm_eps);
        let mlp = GatedFeedForward::new(d, self.intermediate_size, self.hidden_act);
        let stack = Stack::new(self.vocab_size, d, self.num_hidden_layers, norm).tied(self.tie_word_embeddings);
        stack.run(net, |net, layer, x| {
            let heads = Heads::new(layer, self.heads()).rope(&rope);
            let normed = net.norm("input_layernorm", x, norm);
            let after = x + self.attention(&net.at("self_attn"), &heads, &normed);
            let fed = if self.use_parallel_residual { normed } else { net.norm("post_attention_layernorm", &after, norm) };
            after + mlp.apply(&net.at("mlp"), &fed)
        });
        Ok(())
    }
}

blocks::model! { "stablelm": StableLm }
