//! Gemma 3 (Gemma Team 2025, section 2): five windowed layers to a global one, each kind with a rotary base of its own, normed queries
//! and keys in place of capped scores. Names are those of `Gemma3ForCausalLM`, the text model.

use blocks::{Activation, Architecture, GatedFeedForward, Heads, LayerType, Net, Norm, Rope, RopeParameters, RopeSource, Stack};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The only one.
        Gemma3 = "gemma3_text",
    }
}

config! {
    /// Rotary parameters of each kind of layer.
    pub struct LayerRopes {
        /// Of global layers.
        full_attention: Option<RopeParameters> = None,
        /// Of windowed layers.
        sliding_attention: Option<RopeParameters> = None,
        ..
    }
}

config! {
    /// Gemma 3 text decoders.
    pub struct Gemma3 {
        /// The family.
        model_type: Kind = Kind::Gemma3,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 262208,
        /// Width of the residual stream.
        hidden_size: u64 = 2304,
        /// Width of the feed-forward layer.
        intermediate_size: u64 = 9216,
        /// Number of blocks.
        num_hidden_layers: u32 = 26,
        /// Query heads.
        num_attention_heads: u64 = 8,
        /// Key and value heads.
        num_key_value_heads: u64 = 4,
        /// Size of a head.
        head_dim: u64 = 256,
        /// Activation of the feed-forward layer.
        hidden_activation: Activation = Activation::GeluTanh,
        /// Added to the mean square in norms.
        rms_norm_eps: f64 = 1e-6,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 131072,
        /// The output projection is the token table.
        tie_word_embeddings: bool = true,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Scores are divided by the root of this.
        query_pre_attn_scalar: f64 = 256.0,
        /// Cap of the scores.
        attn_logit_softcapping: Option<f64> = None,
        /// Cap of the logits.
        final_logit_softcapping: Option<f64> = None,
        /// The window of windowed layers, in tokens.
        sliding_window: Option<u32> = Some(4096),
        /// Every so manieth layer is global, where layer_types does not say.
        sliding_window_pattern: u32 = 6,
        /// Which layers have a window.
        layer_types: Option<Vec<LayerType>> = None,
        /// Biases in q, k, v and o.
        attention_bias: bool = false,
        /// Rotary base of global layers, where rope_parameters does not say.
        rope_theta: f64 = 1_000_000.0,
        /// Rotary base of windowed layers, where rope_parameters does not say.
        rope_local_base_freq: f64 = 10_000.0,
        /// Rotary scaling of global layers in older configurations.
        rope_scaling: Option<RopeParameters> = None,
        /// Rotary base and scaling in newer configurations.
        rope_parameters: Option<LayerRopes> = None,
        ..
    }
}

impl Gemma3 {
    fn heads(&self) -> [u64; 3] {
        [self.num_attention_heads, self.num_key_value_heads, self.head_dim]
    }

    /// Of global and of windowed layers.
    fn ropes(&self) -> Result<[Rope; 2]> {
        let source = RopeSource { head_dim: self.head_dim, max_positions: self.max_position_embeddings, ..RopeSource::default() };
        let given = self.rope_parameters.as_ref();
        let global = RopeSource {
            parameters: given.and_then(|r| r.full_attention.as_ref()),
            scaling: self.rope_scaling.as_ref(),
            theta: Some(self.rope_theta),
            ..source
        };
        let local = RopeSource {
            parameters: given.and_then(|r| r.sliding_attention.as_ref()),
            theta: Some(self.rope_local_base_freq),
            ..source
        };
        Ok([Rope::new(global)?, Rope::new(local)?])
    }
}

impl Architecture for Gemma3 {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        Heads::check(self.heads())?;
        let [global, local] = self.ropes()?;
        let d = self.hidden_size;
        let norm = Norm::rms_unit_offset(d, self.rms_norm_eps);
        let scale = self.query_pre_attn_scalar.sqrt().recip();
        let mlp = GatedFeedForward::new(d, self.intermediate_size, self.hidden_activation);
        let stack = Stack {
            embedding_scale: Some((d as f64).sqrt()),
            softcap: self.final_logit_softcapping,
            ..Stack::new(self.vocab_size, d, self.num_hidden_layers, norm).tied(self.tie_word_embeddings)
        };
        stack.run(net, |net, layer, x| {
            let sliding = !(layer + 1).is_multiple_of(self.sliding_window_pattern.max(1));
            let sees = LayerType::of(self.layer_types.as_deref(), layer, sliding);
            let heads = Heads::new(layer, self.heads())
                .normed(norm)
                .rope(if sees == LayerType::Sliding { &local } else { &global })
                .window(sees.window(self.sliding_window))
                .scores(scale, self.attn_logit_softcapping);
            let attended = net.norm("input_layernorm", x, norm);
            let attended = heads.self_attention(&net.at("self_attn"), &attended, d, [self.attention_bias; 2]);
            let x = x + net.norm("post_attention_layernorm", &attended, norm);
            let fed = mlp.apply(&net.at("mlp"), &net.norm("pre_feedforward_layernorm", &x, norm));
            x + net.norm("post_feedforward_layernorm", &fed, norm)
        });
        Ok(())
    }
}

blocks::model! { "gemma3": Gemma3 }
