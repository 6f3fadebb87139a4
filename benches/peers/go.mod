module forebay-peers

go 1.26

require (
	github.com/HdrHistogram/hdrhistogram-go v1.4.0
	github.com/confluentinc/confluent-kafka-go/v2 v2.11.1
)
