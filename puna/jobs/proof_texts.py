"""What two models are asked to read when nobody names a text: eight short pieces that differ as much as texts do."""

__all__ = ["PROOF_TEXTS"]

PROOF_TEXTS = (
    "A llama carries what it is given: one word after another, each step no longer than the last. It does not hurry, and "
    "it does not forget the way it came. The same numbers, added in another order, differ in the last digit; in float32 "
    "that is all the difference there is. Whoever counts twice should count the same thing twice, and say which.",
    "def carry(load):\n    return [step for step in load if step is not None]\n\n\nclass Herd:\n    def __init__(self, names):\n"
    "        self.names = sorted(set(names))\n\n    def __len__(self):\n        return len(self.names)\n\n"
    'if __name__ == "__main__":\n    print(f"{len(Herd(["a", "b"]))} animals, {carry([1, None, 2])!r}")\n',
    "QUEEN. What is the night?\nGUARD. Almost at odds with morning, which is which.\nQUEEN. How sayest thou, that he denies "
    "his person at our great bidding?\nGUARD. Did you send to him, madam?\nQUEEN. I hear it by the way; but I will send.",
    "高原上的羊驼走得很慢，但是从来不停。训练一个模型也是这样：每一步都很小，走得久了，就到了很远的地方。"
    "矩阵乘法并不难，难的是知道为什么要乘。注意力是一个加权平均，权重来自查询和键的内积。",
    "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？"
    "千里之行，始於足下；九層之臺，起於累土。知之為知之，不知為不知，是知也。",
    '{"name": "puna", "sizes": [64, 128, 256, 512], "ratio": 0.6180339887, "tied": true, "bias": null,\n'
    ' "table": {"a": 1e-05, "b": 500000.0, "c": -3}, "path": "runs/demo/model"}\n2026-11-27 08:15:00 +0000 INFO  step 17 of 780',
    "La llama est un animal des hauts plateaux. Wer langsam geht, kommt auch ans Ziel. El que mucho abarca, poco aprieta. "
    "Кто рано встаёт, тому бог подаёт. 猫も杓子も。 가는 말이 고와야 오는 말이 곱다. الصبر مفتاح الفرج.",
    "Prices:   12.50  |  1,299.00  |  -7   \t(see note 3)\n\n\n   * first\n   * second 🦙🏔️ and 👩‍👧, e\u0301 or é?\n"
    "x^2 + y^2 = z^2;  |w| <= 1;  f(x) = max(0, x)\n\n--\nThe end... or not?!  ~~~  <div class='a'>&amp;</div>",
)
