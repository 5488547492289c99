//! Phi-3 (Abdin et al. 2024, section 2) and Phi-4: Llama with queries, keys and values in one layer, gate and up in another, and LongRoPE.
//! Names are those of `Phi3ForCausalLM`.

use blocks::{Activation, Architecture, GatedFeedForward, Heads, Linear, Net, Norm, Rope, RopeParameters, RopeSource, Stack};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The only one.
        Phi3 = "phi3",
    }
}

config! {
    /// Phi-3 and Phi-4 decoders.
    pub struct Phi3 {
        /// The family.
        model_type: Kind = Kind::Phi3,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 32064,
        /// Width of the residual stream.
        hidden_size: u64 = 3072,
        /// Width of the feed-forward layer.
        intermediate_size: u64 = 8192,
        /// Number of blocks.
        num_hidden_layers: u32 = 32,
        /// Query heads.
        num_attention_heads: u64 = 32,
        /// Key and value heads, if fewer.
        num_key_value_heads: Option<u64> = None,
        /// Size of a head, if not hidden_size / num_attention_heads.
        head_dim: Option<u64> = None,
        /// Activation of the feed-forward layer.
        hidden_act: Activation = Activation::Silu,
        /// Added to the mean square in norms.
        rms_norm_eps: f64 = 1e-5,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 4096,
        /// The output projection is the token table.
        tie_word_embeddings: bool = false,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Longest sequence of the training before its extension.
        original_max_position_embeddings: Option<u64> = None,
        /// Share of each head that turns, where rope_parameters does not say.
        partial_rotary_factor: Option<f64> = None,
        /// Tokens that attention looks back on, the own one included.
        sliding_window: Option<u32> = None,
        /// Base of the rotary frequencies, where rope_parameters does not say.
        rope_theta: Option<f64> = None,
        /// Rotary scaling in older configurations.
        rope_scaling: Option<RopeParameters> = None,
        /// Rotary base and scaling in newer configurations.
        rope_parameters: Option<RopeParameters> = None,
        ..
    }
}

impl Phi3 {
    fn heads(&self) -> [u64; 3] {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads.unwrap_or(self.num_attention_heads));
        [heads, kv_heads, self.head_dim.unwrap_or(self.hidden_size / heads.max(1))]
    }

    fn rope(&self) -> Result<Rope> {
        Rope::new(RopeSource {
            parameters: self.rope_parameters.as_ref(),
            scaling: self.rope_scaling.as_ref(),
            theta: self.rope_theta,
            partial: self.partial_rotary_factor,
            head_dim: self.heads()[2],
            max_positions: self.max_position_embeddings,
            original: self.original_max_position_embeddings,
        })
    }

    fn attention(&self, net: &Net, heads: &Heads, x: &Value) -> Value {
        let d = self.hidden_size;
        scope("self_attn", || {
            let joined = net.linear("qkv_proj", x, Linear::new(d, heads.d_query() + 2 * heads.d_key()));
            let [q, k, v] = heads.split(&joined);
            net.linear("o_proj", &heads.attend(net, &q, &k, &v), Linear::new(heads.d_query(), d))
        })
    }
}

impl Architecture for Phi3 {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        Heads::check(self.heads())?;
        let rope = self.rope()?;
        let d = self.hidden_size;
        let norm = Norm::rms(d, self.rms_norm_eps);
        let mlp = GatedFeedForward::new(d, self.intermediate_size, self.hidden_act);
        let stack = Stack::new(self.vocab_size, d, self.num_hidden_layers, norm).tied(self.tie_word_embeddings);
        stack.run(net, |net, layer, x| {
            let heads = Heads::new(layer, self.heads()).rope(&rope).window(self.sliding_window);
            let x = x + self.attention(&net.at("self_attn"), &heads, &net.norm("input_layernorm", x, norm));
            let fed = net.norm("post_attention_layernorm", &x, norm);
            x + mlp.apply_fused(&net.at("mlp"), &fed, ["gate_up_proj", "down_proj"])
        });
        Ok(())
    }
}

blocks::model! { "phi3": Phi3 }
