// A caller in Go: asks a server of the tests by the contract alone, and prints what it was answered as JSON.
// client ADDRESS USER ITEM,ITEM,… TS
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "pairlift/v1"
)

// codec: Debian's gRPC is older than its protobuf, and has another one's by default.
type codec struct{}

func (codec) Marshal(message interface{}) ([]byte, error) { return proto.Marshal(message.(proto.Message)) }
func (codec) Unmarshal(data []byte, message interface{}) error {
	return proto.Unmarshal(data, message.(proto.Message))
}
func (codec) Name() string   { return "proto" }
func (codec) String() string { return "proto" }

func number(text string) int64 {
	value, err := strconv.ParseInt(text, 10, 64)
	must(err)
	return value
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func refusal(err error) map[string]string {
	return map[string]string{"code": status.Code(err).String(), "details": status.Convert(err).Message()}
}

func integers(values ...int64) *pb.Ids {
	return &pb.Ids{Kind: &pb.Ids_Integers{Integers: &pb.IntegerIds{Values: values}}}
}

func record(ctx context.Context, client pb.RankingServiceClient, user, item, ts int64) [][]interface{} {
	stream, err := client.RecordEvents(ctx)
	must(err)
	batch := &pb.RecordEventsRequest{
		EventIds: &pb.Ids{Kind: &pb.Ids_Texts{Texts: &pb.TextIds{Values: []string{"g1"}}}},
		Users:    integers(user), Items: integers(item), Ts: []int64{ts},
		Feedback: []*pb.FeedbackColumn{{Name: "play", Numbers: []float64{0.9}}},
	}
	outcomes := [][]interface{}{}
	for k := 0; k < 2; k++ { // again: it counts once
		must(stream.Send(batch))
		outcome, err := stream.Recv()
		must(err)
		outcomes = append(outcomes, []interface{}{outcome.GetRecorded(), outcome.GetDuplicates(), append([]string{}, outcome.GetReasons()...)})
	}
	must(stream.CloseSend())
	return outcomes
}

func main() {
	conn, err := grpc.Dial(os.Args[1], grpc.WithInsecure(), grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{})))
	must(err)
	defer conn.Close()
	client := pb.NewRankingServiceClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	id, items := number(os.Args[2]), []int64{}
	for _, item := range strings.Split(os.Args[3], ",") {
		items = append(items, number(item))
	}
	user := &pb.Id{Kind: &pb.Id_Integer{Integer: id}}
	asked := &pb.RankRequest{User: user, Items: integers(items...), Context: &pb.Context{Surface: "feed"}}
	ranked, err := client.Rank(ctx, asked)
	must(err)
	listed, err := client.Recommend(ctx, &pb.RecommendRequest{User: user, K: 5})
	must(err)
	_, wrong := client.Rank(ctx, &pb.RankRequest{User: &pb.Id{Kind: &pb.Id_Text{Text: "who"}}, Items: integers(items...)})
	gone, end := context.WithTimeout(ctx, time.Nanosecond)
	defer end()
	_, late := client.Rank(gone, asked)
	must(json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"rank":      map[string]interface{}{"items": ranked.GetItems().GetIntegers().GetValues(), "scores": ranked.GetScores(), "indexes": ranked.GetIndexes()},
		"recommend": map[string]interface{}{"items": listed.GetItems().GetIntegers().GetValues(), "scores": listed.GetScores()},
		"wrong":     refusal(wrong),
		"late":      refusal(late)["code"],
		"recorded":  record(ctx, client, id, items[0], number(os.Args[4])),
	}))
}
