//! Qwen2 (Yang et al. 2024, "Qwen2 Technical Report", section 2.2) and Qwen2.5: Llama with biases in the projections of queries, keys
//! and values. Names are those of `Qwen2ForCausalLM`.

use blocks::{Activation, Architecture, GatedFeedForward, Heads, LayerType, Net, Norm, Rope, RopeParameters, RopeSource, Stack};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The only one.
        Qwen2 = "qwen2",
    }
}

config! {
    /// Qwen 2 and 2.5 decoders.
    pub struct Qwen2 {
        /// The family.
        model_type: Kind = Kind::Qwen2,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 151936,
        /// Width of the residual stream.
        hidden_size: u64 = 4096,
        /// Width of the feed-forward layer.
        intermediate_size: u64 = 22016,
        /// Number of blocks.
        num_hidden_layers: u32 = 32,
        /// Query heads.
        num_attention_heads: u64 = 32,
        /// Key and value heads.
        num_key_value_heads: u64 = 32,
        /// Size of a head, if not hidden_size / num_attention_heads.
        head_dim: Option<u64> = None,
        /// Activation of the feed-forward layer.
        hidden_act: Activation = Activation::Silu,
        /// Added to the mean square in norms.
        rms_norm_eps: f64 = 1e-6,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 32768,
        /// The output projection is the token table.
        tie_word_embeddings: bool = false,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Whether upper layers look back on a window only.
        use_sliding_window: bool = false,
        /// The window, in tokens.
        sliding_window: Option<u32> = None,
        /// Lower layers without a window, where layer_types does not say.
        max_window_layers: u32 = 28,
        /// What each layer looks back on.
        layer_types: Option<Vec<LayerType>> = None,
        /// Base of the rotary frequencies, where rope_parameters does not say.
        rope_theta: Option<f64> = None,
        /// Rotary scaling in older configurations.
        rope_scaling: Option<RopeParameters> = None,
        /// Rotary base and scaling in newer configurations.
        rope_parameters: Option<RopeParameters> = None,
        ..
    }
}

impl Qwen2 {
    fn heads(&self) -> [u64; 3] {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        [heads, kv_heads, self.head_dim.unwrap_or(self.hidden_size / heads.max(1))]
    }

    fn rope(&self) -> Result<Rope> {
        Rope::new(RopeSource {
            parameters: self.rope_parameters.as_ref(),
            scaling: self.rope_scaling.as_ref(),
            theta: self.rope_theta,
            head_dim: self.heads()[2],
            max_positions: self.max_position_embeddings,
            ..RopeSource::default()
        })
    }

    fn window(&self, layer: u32) -> Option<u32> {
        let sliding = self.use_sliding_window && layer >= self.max_window_layers;
        LayerType::of(self.layer_types.as_deref(), layer, sliding).window(self.sliding_window.filter(|_| self.use_sliding_window))
    }
}

impl Architecture for Qwen2 {
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
            let heads = Heads::new(layer, self.heads()).rope(&rope).window(self.window(layer));
            let attended = net.norm("input_layernorm", x, norm);
            let x = x + heads.self_attention(&net.at("self_attn"), &attended, d, [true, false]);
            let fed = net.norm("post_attention_layernorm", &x, norm);
            x + mlp.apply(&net.at("mlp"), &fed)
        });
        Ok(())
    }
}

blocks::model! { "qwen2": Qwen2 }
