"""Coordinates and SHA-256 of the jars of ``jars``, by line of Spark; data only."""

# ruff: noqa: E501  (a coordinate and its checksum stay on one line)

# Versions are those that the line's Hadoop names; of AWS SDK 2.24.6 there is no transfer manager, so 4.0 has 2.24.10.
S3 = {
    "3.5": """
        com.amazonaws:aws-java-sdk-core:1.12.262 06fed99f929c389e168278c1b111aaf1afb270d07202fbbce92e73d1e4279678
        com.amazonaws:aws-java-sdk-dynamodb:1.12.262 7af4ba06d0d9b3c2ab435089caecd0567810d203aa285f7aa72861f1964d442e
        com.amazonaws:aws-java-sdk-kms:1.12.262 c00f5ae7b334255f661d85512e7203af9523a04fb65d0c431c2eea2003ed8ae2
        com.amazonaws:aws-java-sdk-s3:1.12.262 a0cb7580178bc0d4d3558295a5bb890008478da8a6b3241989c71238b0ed3be5
        com.amazonaws:aws-java-sdk-sts:1.12.262 659f48d8ebc02025c5042cc4b925f62610e81f334498f1b9e7a271ce20ecbcae
        org.apache.hadoop:hadoop-aws:3.3.4 53f9ae03c681a30a50aa17524bd9790ab596b28481858e54efd989a826ed3a4a
        software.amazon.ion:ion-java:1.0.2 0d127b205a1fce0abc2a3757a041748651bc66c15cf4c059bac5833b27d471a5
        com.fasterxml.jackson.dataformat:jackson-dataformat-cbor:2.12.6 cfa008d15f052e69221e8c3193056ff95c3c594271321ccac8d72dc1a770619c
        com.amazonaws:jmespath-java:1.12.262 9001ea993a45d82a2d3086edcbda8a40b4e012d049a70fbf071fd329c0fbd777
        joda-time:joda-time:2.8.1 b4670b95f75957c974284c5f3ada966040be2578f643c5c6083d262162061fa2
    """,
    "4.0": """
        software.amazon.awssdk:annotations:2.24.10 be981be1cd8790e8786679f3039dad376defc36f3f7e7daa3665f9431e5e5b4d
        software.amazon.awssdk:apache-client:2.24.10 c0b4c361879c36ede54e813a854d5d32a4c66facdd7900768f11a734cb26c6e3
        software.amazon.awssdk:arns:2.24.10 140036121c2469ee95bbfdb3a17543d95b73bd6d7fda42331689929ff7f62003
        software.amazon.awssdk:auth:2.24.10 526b24531177b87d04fe11438311f49286949be1e2d8d01a1a65b10d03b2c231
        software.amazon.awssdk:aws-core:2.24.10 e0df9106545af169fd13340388699c8edc30f0b3b814a749370a9eaab7d2a3fb
        software.amazon.awssdk:aws-query-protocol:2.24.10 a62c5bb311c94bee6e0f987f7e3c27206285c09534b78d81aa52b95f0ef47589
        software.amazon.awssdk:aws-xml-protocol:2.24.10 4e6624d5925980c0619420c7713220aa5488a67a9cab8485a82b82b49d58b974
        software.amazon.awssdk:checksums:2.24.10 dc8d0e9177481bd19dcc76378cfc3399e24dfe416971e939103ea0b819234889
        software.amazon.awssdk:checksums-spi:2.24.10 a8203a5cda5bcab05986aa182c02410e19983c085530ed59438e8ea6c5be8063
        software.amazon.awssdk:crt-core:2.24.10 db0afb0640eb97fe8fd660991ad3cba5f4c77a7cb193dcbb88e0a4fcce343276
        software.amazon.awssdk:endpoints-spi:2.24.10 f7ccd025b7b10cebfea24147ed0870a494c3c0a3dbcd1164d9e5333ca6712a95
        software.amazon.eventstream:eventstream:1.0.1 0c37d8e696117f02c302191b8110b0d0eb20fa412fce34c3a269ec73c16ce822
        org.apache.hadoop:hadoop-aws:3.4.1 01334a07e179cae2b7e251f24857f11e3759108c9d6a79dcbe362a4295227da2
        software.amazon.awssdk:http-auth:2.24.10 1aeac6de11f592670248f4f06b4709841adcc128ec35f099fa57dbb3c902a231
        software.amazon.awssdk:http-auth-aws:2.24.10 db0307158d961468453cf8a9d106ba209b877e67c2c0a65c6c455b73e49a8ebd
        software.amazon.awssdk:http-auth-spi:2.24.10 8a1a2b699c9a4c5eac294ffb2c0a90a6f2e71359acfadaf9c85b504bf1c00e04
        software.amazon.awssdk:http-client-spi:2.24.10 e669ef91cc4fcd0bb95ee17c51da962c06eff757dd89f353ef5351d8024c0630
        software.amazon.awssdk:identity-spi:2.24.10 bd34e946ded4a6b988ec45376c3d5036062f56f9ef95ea2f434e3a626945e0e6
        software.amazon.awssdk:json-utils:2.24.10 c73b0ca5c376400e7aa3164f3705441f844238868c4ffe4cc78cbcc452aa9403
        software.amazon.awssdk:metrics-spi:2.24.10 07d83c5f5499fda92cc25160a4b49559d36b61bcdd4c6244523bb3f82836ab9e
        software.amazon.awssdk:netty-nio-client:2.24.10 1cf2c2f1b6f1d3ad8d52d95211b4fdfcda175f63d29621c8cd0ae66f00a21f47
        software.amazon.awssdk:profiles:2.24.10 56f1378b6ecea746f4c7c8cc73db0e821c28af30f98d8bb063b206806e73f7e5
        software.amazon.awssdk:protocol-core:2.24.10 a35b4d45b76703901a7a00df5c9a73f43df3a39d3cdbe56a72a2b9372de7115c
        org.reactivestreams:reactive-streams:1.0.4 f75ca597789b3dac58f61857b9ac2e1034a68fa672db35055a8fb4509e325f28
        software.amazon.awssdk:regions:2.24.10 51b100eb5b19798084ca022abb6929f560c4d94e9c10b64bb6563b09d49c110f
        software.amazon.awssdk:s3:2.24.10 650d0b11827a2f0273ab38d20d45d868e7b7021785a9831873c8c1cfb26e75fc
        software.amazon.awssdk:s3-transfer-manager:2.24.10 d08112682b68abf0b9b8d7b02802aad09703d92e9907284c9d22882d21e3fc54
        software.amazon.awssdk:sdk-core:2.24.10 0e36c4b70b4bc3bfc204b795fd064fe490d64f903f8c047c81e8b16421e820c4
        software.amazon.awssdk:sts:2.24.10 03a8262f7fac66581fdecfd2f7b62d1ac80a7f99e2804d570f5bc5b9e35d90e1
        software.amazon.awssdk:third-party-jackson-core:2.24.10 77e053d61a033b8b33806b605596cb8506bbf744b41be41e8269f6c6ec13dcc1
        software.amazon.awssdk:utils:2.24.10 e6a14f9e5cd5ea0d523644bed6580bc7a3daadc08f357c29741c73a8a43da6b1
    """,
    "4.1": """
        software.amazon.awssdk:annotations:2.29.52 8cd8bd8afd7eca5a367f69fd87427f6d9f3e7d359962122da24d71f1963f00cd
        software.amazon.awssdk:apache-client:2.29.52 c96494be30ecac6f0ab7a35fdd91a4c77ca8a5daf62f3d9d84644ef0f0524dc6
        software.amazon.awssdk:arns:2.29.52 f5a4d1d9b4e4fc63c9bda49bcf1c59d23fd876b276c6b43aaca12969337303a6
        software.amazon.awssdk:auth:2.29.52 4d8143b6198dc7a530c2ccdd813129c132b96736086c0d4fea85480b9bdbc5fe
        software.amazon.awssdk:aws-core:2.29.52 eb560c064fbaac7e2e7f4a77ac343d3083bea0d7f6e2c69ba022d3f3e859be90
        software.amazon.awssdk:aws-query-protocol:2.29.52 1b117672963ee5059c45f2aadb110f191b578d108d8f08d7c7a59e6c0b098a8e
        software.amazon.awssdk:aws-xml-protocol:2.29.52 daf87b429373ad586d165003b5b1d4fe498c6472eb65ec9a9e2aa7d56f3917dd
        software.amazon.awssdk:checksums:2.29.52 bca99ff25c9b917d6be03e5dce78ad5328e7dca485e96024fa8476e4192a800a
        software.amazon.awssdk:checksums-spi:2.29.52 21193b9b648843dcaff493f0dd80abab9ee6871b203b9218120554698d8f7b8a
        software.amazon.awssdk:crt-core:2.29.52 4e1f33de21b688695fec91b977ddfa99e9d376edcbad06a62b0c138c60b37de4
        software.amazon.awssdk:endpoints-spi:2.29.52 e54f246c668d70b55cffe0c8fad18d4465e74e22db75139918bd30610093d1e6
        software.amazon.eventstream:eventstream:1.0.1 0c37d8e696117f02c302191b8110b0d0eb20fa412fce34c3a269ec73c16ce822
        org.apache.hadoop:hadoop-aws:3.4.2 d2d24e6b715b5656b9d238bf13b6682a07e2004dd36aad74a73aeb854319f4d9
        software.amazon.awssdk:http-auth:2.29.52 d8aa3bd376aaec7196396e65fe8755f1fdd169e51357f8128ecdc7d23a687450
        software.amazon.awssdk:http-auth-aws:2.29.52 7ae124e81ac0c2860bb61fdde34a388dbe823fef8509dd46a6bec805ada90308
        software.amazon.awssdk:http-auth-aws-eventstream:2.29.52 565a4aacce955c5ffaed551f6faaaa958e9e92b2f8514c8482f664edb2bab576
        software.amazon.awssdk:http-auth-spi:2.29.52 7a2168c5a7baa856d7ae9f9c4f7522d2db9f1361108c38f5b6ece66f249e6a2d
        software.amazon.awssdk:http-client-spi:2.29.52 8ea61ce3b527779fbfe119e0775c4b7cfdf274a979b1e50596a634685a5b6542
        software.amazon.awssdk:identity-spi:2.29.52 85104635abf9e5c044aaf7f8951b63efc2ef82051b5ee303571ee2e1fd8b46d0
        software.amazon.awssdk:json-utils:2.29.52 2652cdb3668311bcff6e643c8612b9fea266423ae1ce33743c84dd7f77904311
        software.amazon.awssdk:metrics-spi:2.29.52 1db2e3da338148ee40a716e1733c9a5b99e9e6daa4db3aa8bd7e718adafa2510
        software.amazon.awssdk:netty-nio-client:2.29.52 07238668c9cf54531ee269fd6e2a1e2650fb75d6774d401f406c2a14f26af654
        software.amazon.awssdk:profiles:2.29.52 fef84619d101838ba45f48d0caddb09a85d9ed8bf869095bd7d2064796856cf7
        software.amazon.awssdk:protocol-core:2.29.52 7b32e41a3743b422d2edec1670f60b4c1e512fcd5ab7a53fef20742d6b9104d1
        org.reactivestreams:reactive-streams:1.0.4 f75ca597789b3dac58f61857b9ac2e1034a68fa672db35055a8fb4509e325f28
        software.amazon.awssdk:regions:2.29.52 5ee0e26277c679ffa70d83923b0d5f77a53066ecde8610f28be1856947d60eaf
        software.amazon.awssdk:retries:2.29.52 ca3752ba31399721980c6398992921ff5aa164e084b4c14484333df58c76a353
        software.amazon.awssdk:retries-spi:2.29.52 a4218ea742fc9e07a620629d7a258bfd92b8ea3ef75f1b99193d0898ca3efe99
        software.amazon.awssdk:s3:2.29.52 abaedea7e68063e9c4ab090f80d14b9884c57b50953bfe6e5acaa23025609efa
        software.amazon.awssdk:s3-transfer-manager:2.29.52 0c9e654637247187a7e2494eb7a8799477a772a7d554cd3ae787cd3e3bae3c55
        software.amazon.awssdk:sdk-core:2.29.52 ea8e9856569f85075a8a806d0481c4bd848c98b24fd6d706fc0b5883fc4604dc
        software.amazon.awssdk:sts:2.29.52 6495d0457f4e4c3724d8c9c5fe4f6f98c9530a22f92449c4cca5fd03622e4edb
        software.amazon.awssdk:third-party-jackson-core:2.29.52 eaece3eb60beb8ec09d8a4f48d5bff4110010b03cc23688bdcf2af2eb075cac6
        software.amazon.awssdk:utils:2.29.52 f150a38f2fec14ced2de6459bfe804f647c88baa573b218646ef89b436a29d42
    """,
}
GCS = """
    com.google.cloud.bigdataoss:gcs-connector:hadoop3-2.2.26:shaded cbaa2773283c2237f933f48deb77a6f912619e367b26efe186aee74f4b35d89c
"""
ICEBERG = {
    "3.5": """
        org.apache.iceberg:iceberg-spark-runtime-3.5_2.12:1.12.0 8dd8c90e54ed1a20f2461309d047a255ee56382eb7c0a46162b27a4936fd86dc
    """,
    "4.0": """
        org.apache.iceberg:iceberg-spark-runtime-4.0_2.13:1.10.1 2192a0881ed0f5773b5a83a8820d2b0b2069beec203028643a1c338551007f09
    """,
    "4.1": """
        org.apache.iceberg:iceberg-spark-runtime-4.1_2.13:1.12.0 3123c3798af642dd537230923548e013ef41cc28b6626e5225808cf5670a0f82
    """,
}
# Spark's side of the S3A committers.
COMMITTER = {
    "3.5": """
        org.apache.spark:spark-hadoop-cloud_2.12:3.5.8 9c9be6d3e185c2c9f53e66f8781f0fa32944882ced2c5c08945a78eb2f989ced
    """,
    "4.0": """
        org.apache.spark:spark-hadoop-cloud_2.13:4.0.2 c5d41a2fabf5d74b0b1082f7e7c22f1dd0e180126db507c2be5916224b4fe247
    """,
    "4.1": """
        org.apache.spark:spark-hadoop-cloud_2.13:4.1.2 672d7d872f434cb7fe1c90f7edcd19b1e8c67a335a578288426fbd4db5096915
    """,
}
