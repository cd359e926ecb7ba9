"""The labels of compression's pages in Simplified Chinese."""

__all__ = ["CHINESE_COMPRESSION"]

CHINESE_COMPRESSION = {
    "run.frontier.title": "前沿：{name}",
    "run.frontier.subtitle": "同一个模型用几种方法变小：每种大小在留出文本上的代价，以及它的速度。",
    # what to take
    "frontier.row.bytes": "原模型",
    "frontier.row.nats": "原模型在评判文本上每词元的奈特",
    "frontier.row.tried": "试过的小模型",
    "frontier.advice": "该取哪一个",
    "frontier.rule": "规则有意从简：取增加的奈特在 95 % 区间的上端也不超过 {limit} 的最小模型，即困惑度多 5 %。"
    "如果任务能承受更多或更少，请看表。",
    "frontier.verdict": "推荐 {name}：占原模型字节的 {share}（{bytes}），每词元增加 {added} 奈特，至多 {high}。",
    "frontier.verdict_none": "没有可推荐的：没有一个更小的模型确定不超过 {limit} 奈特。每省一个字节增加奈特最少的是 {name}："
    "占原模型字节的 {share}（{bytes}），增加 {added} 奈特，至多 {high}。",
    "frontier.verdict_larger": "没有可推荐的：没有一种设置比原模型存得更少。",
    "frontier.fact.bytes": "大小",
    "frontier.fact.bytes_note": "原为 {bytes}",
    "frontier.fact.added": "每词元增加的奈特",
    "frontier.fact.added_note": "95 % 区间 {interval}",
    "frontier.fact.speed": "写作速度",
    "frontier.fact.speed_note": "与原模型每秒词元数之比，在这台机器上",
    "frontier.command": "写出这个模型。拟合与评判所用的文本都相同。",
    # size and speed against added nats
    "frontier.title": "大小、速度与损害",
    "frontier.words": "纵轴是损害：同样的留出词元上每词元增加的奈特。`auto` 使因子适合实际出现的输入，也适合损失所感受到的，"
    "让同一输入的矩阵共用一个因子，并给每个矩阵它值得的秩；`whitened` 是只看输入的已发表最优解，每个矩阵保留同样的比例。"
    "`int8` 保留所有权重，每个写成一个字节。",
    "frontier.size_caption": "增加的奈特与整个模型的大小，包括嵌入和输出头。点旁的数是线性权重的保留比例；误差线是 95 % 区间。"
    "纵轴为对数；增加不足 {least} 的画在该处。",
    "frontier.speed_caption": "同样的模型与它们每秒写出的词元数，批大小为一，逐个写出。越靠右下越好。"
    "增加不足 {least} 的画在该处。",
    "frontier.table_caption": "速度是五轮的中位数，每轮各模型依次测量：读入至多 128 个词元后写 32 个。"
    "只对这台机器、批大小为一成立。",
    "frontier.original": "原模型",
    "frontier.limit": "上限 {limit}",
    "frontier.axis.bytes": "模型大小",
    "frontier.axis.decode_tokens_per_second": "每秒写出的词元",
    "frontier.axis.added": "每词元增加的奈特",
    "frontier.column.name": "模型",
    "frontier.column.bytes": "大小",
    "frontier.column.share": "占原模型",
    "frontier.column.added": "增加的奈特",
    "frontier.column.interval": "95 % 区间",
    "frontier.column.decode": "每秒写出",
    "frontier.column.prefill": "每秒读入",
    "frontier.kept_words": "秩为 r 的矩阵存成两个瘦矩阵，其余部分已舍去。图中是 `{name}`。",
    # what each lever gave
    "lever.title": "每个手段的作用",
    "lever.words": "各行都保留线性权重的 {keep}；每一行比上一行多一样东西。",
    "lever.caption": "各自增加的奈特，留出词元相同。越少越好。",
    "lever.svd_uniform": "svd：只看权重",
    "lever.asvd_uniform": "asvd：按输入的大小缩放",
    "lever.whitened_uniform": "whitened：实际出现的输入",
    "lever.kfac_uniform": "kfac：再看损失感受到什么",
    "lever.kfac_greedy": "+ 总损失最小的秩",
    "lever.auto_greedy": "+ 共用因子（auto）",
    "lever.healing": "+ 修复训练",
    "lever.scratch": "代之以：同样大小，从头训练",
    "lever.column.lever": "低秩",
    "lever.column.added": "增加的奈特",
    "lever.column.interval": "95 % 区间",
    "lever.column.saved": "变化",
    # levers pulled one after another
    "run.row.cache": "每个词元的缓存",
    "pulled.title": "逐个手段",
    "pulled.words": "每一行是经过以上各行及本行之后的模型。奈特从原模型算起，留出词元相同。",
    "pulled.caption": "缓存保存对话中每个词元的键和值，用模型计算的类型。",
    "pulled.kv_heads": "更少的键值头",
    "pulled.low_rank": "低秩",
    "pulled.embeddings": "更小的嵌入与输出头",
    "pulled.healing": "修复训练",
    "pulled.bits": "更少的位",
    "pulled.column.lever": "手段",
    "pulled.column.bytes": "大小",
    "pulled.column.cache": "每词元缓存",
    "pulled.column.added": "增加的奈特",
    "pulled.column.interval": "95 % 区间",
    "pulled.column.more": "由此手段",
    # ranks and spectra
    "kept.layer": "层",
    "kept.key": "保留的数",
    "kept.dense": "未分解",
    "kept.caption": "每个矩阵仍然存储的数的比例。共用一个因子的几个矩阵合为一行。",
    "spectra.title": "损失随秩下降得多快",
    "spectra.words": "每个矩阵是若干部分之和，最有价值的在前。曲线陡降的只需要少数几个；下降缓慢的最后才裁。",
    "spectra.x_axis": "保留的部分",
    "spectra.y_axis": "剩下的损失",
    "spectra.caption": "每个矩阵自身的损失还剩多少：线是各层的中位数，色带从最小到最大。虚线右边，两个因子存的数比矩阵还多。",
}
