"""The labels of compression's pages in Traditional Chinese, in the words of Taiwan."""

__all__ = ["CHINESE_COMPRESSION"]

CHINESE_COMPRESSION = {
    "run.frontier.title": "前緣（frontier）：{name}",
    "run.frontier.subtitle": "同一個模型，用幾種方法變小：每種大小在留出文本上的代價，以及它的速度。",
    # what to take
    "frontier.row.bytes": "原模型",
    "frontier.row.nats": "原模型在評判文本上的每詞元奈特數",
    "frontier.row.tried": "試過的較小模型",
    "frontier.advice": "該選哪一個",
    "frontier.rule": "規則刻意從簡：增加的奈特，連 95 % 區間的上端都不超過 {limit} 的，取其中最小的模型；"
    "這相當於困惑度（perplexity）多 5 %。如果您的任務能承受更多，或者更少，請看表。",
    "frontier.verdict": "推薦 {name}：位元組只有原模型的 {share}（{bytes}），每詞元增加 {added} 奈特，最多 {high}。",
    "frontier.verdict_none": "沒有可推薦的：沒有哪個較小的模型確定不超過 {limit} 奈特。每省一個位元組，增加奈特最少的是 {name}："
    "位元組是原模型的 {share}（{bytes}），增加 {added} 奈特，最多 {high}。",
    "frontier.verdict_larger": "沒有可推薦的：沒有哪種設定存得比原模型少。",
    "frontier.fact.bytes": "大小",
    "frontier.fact.bytes_note": "原本是 {bytes}",
    "frontier.fact.added": "每詞元增加的奈特",
    "frontier.fact.added_note": "95 % 區間 {interval}",
    "frontier.fact.speed": "寫作速度",
    "frontier.fact.speed_note": "每秒詞元數與原模型之比，在這台機器上",
    "frontier.command": "寫出這個模型。擬合與評判用的文本都相同。",
    # size and speed against added nats
    "frontier.title": "大小、速度與損害",
    "frontier.words": "縱軸是損害：在同一批留出的詞元上，每詞元增加的奈特。`auto` 讓因子既配合實際出現的輸入，"
    "也配合損失感受得到的部分，讓輸入相同的矩陣共用一個因子，並給每個矩陣它值得的秩（rank）；"
    "`whitened` 是只看輸入的、已發表的最佳解，每個矩陣保留同樣的比例。`int8` 保留所有權重，每個寫成一個位元組。",
    "frontier.size_caption": "增加的奈特與整個模型的大小，包括詞嵌入與輸出層。點旁的數是線性權重的保留比例；誤差線是 95 % 區間。"
    "縱軸為對數尺度；增加不到 {least} 的畫在該處。",
    "frontier.speed_caption": "同樣的模型與它們每秒寫出的詞元數：批次大小為一，一個接一個寫出。越靠右下越好。"
    "增加不到 {least} 的畫在該處。",
    "frontier.table_caption": "速度是五輪的中位數，每一輪各模型輪流測量：讀入最多 128 個詞元之後寫 32 個。"
    "只對這台機器、批次大小為一成立。",
    "frontier.original": "原模型",
    "frontier.limit": "上限 {limit}",
    "frontier.axis.bytes": "模型大小",
    "frontier.axis.decode_tokens_per_second": "每秒寫出的詞元",
    "frontier.axis.added": "每詞元增加的奈特",
    "frontier.column.name": "模型",
    "frontier.column.bytes": "大小",
    "frontier.column.share": "占原模型",
    "frontier.column.added": "增加的奈特",
    "frontier.column.interval": "95 % 區間",
    "frontier.column.decode": "每秒寫出",
    "frontier.column.prefill": "每秒讀入",
    "frontier.kept_words": "秩（rank）為 r 的矩陣存成兩個瘦長的矩陣，其餘的部分已經捨去。圖中是 `{name}`。",
    # what each lever gave
    "lever.title": "每個手段的效果",
    "lever.words": "每一列都保留線性權重的 {keep}，而且都比上一列多用一樣東西。",
    "lever.caption": "各自增加的奈特，留出的詞元相同。越少越好。",
    "lever.svd_uniform": "svd：只看權重",
    "lever.asvd_uniform": "asvd：依輸入的大小縮放",
    "lever.whitened_uniform": "whitened：實際出現的輸入",
    "lever.kfac_uniform": "kfac：再看損失感受到什麼",
    "lever.kfac_greedy": "+ 損失總和最小的秩",
    "lever.auto_greedy": "+ 共用因子（auto）",
    "lever.healing": "+ 修復訓練（healing）",
    "lever.scratch": "換個做法：同樣大小，從頭訓練",
    "lever.column.lever": "低秩",
    "lever.column.added": "增加的奈特",
    "lever.column.interval": "95 % 區間",
    "lever.column.saved": "變化",
    # levers pulled one after another
    "run.row.cache": "每個詞元的快取",
    "pulled.title": "手段一個接一個",
    "pulled.words": "每一列是用過上面各列與這一列之後的模型。奈特從原模型算起，留出的詞元相同。",
    "pulled.caption": "快取（KV cache）存放對話中每個詞元的鍵和值，型別與模型計算所用的相同。",
    "pulled.kv_heads": "較少的鍵值頭",
    "pulled.low_rank": "低秩（low rank）",
    "pulled.embeddings": "較小的詞嵌入與輸出層",
    "pulled.healing": "修復訓練（healing）",
    "pulled.bits": "較少的位元",
    "pulled.column.lever": "手段",
    "pulled.column.bytes": "大小",
    "pulled.column.cache": "每詞元快取",
    "pulled.column.added": "增加的奈特",
    "pulled.column.interval": "95 % 區間",
    "pulled.column.more": "此手段增加",
    # ranks and spectra
    "kept.layer": "層",
    "kept.key": "保留的數",
    "kept.dense": "未分解",
    "kept.caption": "每個矩陣還存著的數占原來的比例。共用一個因子的幾個矩陣合為一列。",
    "spectra.title": "損失隨秩（rank）降得多快",
    "spectra.words": "每個矩陣都是許多部分的總和，最有價值的排在前面。曲線陡降的，只需要少數幾個；降得慢的，最後才裁。",
    "tables.title": "詞元表需要多少個方向",
    "tables.words": "詞元向量表同樣是許多方向的總和。依所選的度量，每個方向值多少，看的是詞元出現得多頻繁，以及損失感受到什麼。",
    "tables.caption": "以平均向量為中心，表的損失還剩多少比例。虛線是裁切的地方。",
    "tables.embed_tokens": "輸入表",
    "tables.lm_head": "輸出層",
    "tables.both": "輸入表與輸出層",
    "spectra.x_axis": "保留的部分",
    "spectra.y_axis": "剩下的損失",
    "spectra.caption": "每個矩陣自己的損失還剩多少比例：線是各層的中位數，色帶從最小到最大。"
    "虛線右邊，兩個因子存的數比矩陣本身還多。",
}
