package remote

import (
	"context"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"fermata/protocol/fault"
)

// checkedText refuses a request with text that is not UTF-8, which the wire cannot
// carry, in the words of the command line.
func checkedText(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := checkText(req); err != nil {
		return err
	}
	return invoke(ctx, method, req, reply, conn, opts...)
}

func checkedStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, err
	}
	return textStream{stream}, nil
}

// textStream checks the messages that it sends.
type textStream struct{ grpc.ClientStream }

func (s textStream) SendMsg(m any) error {
	if err := checkText(m); err != nil {
		return err
	}
	return s.ClientStream.SendMsg(m)
}

func checkText(m any) error {
	message, ok := m.(proto.Message)
	if !ok {
		return nil
	}
	return checkMessage(message.ProtoReflect())
}

func checkMessage(m protoreflect.Message) (err error) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		check := func(v protoreflect.Value, kind protoreflect.FieldDescriptor) bool {
			switch kind.Kind() {
			case protoreflect.StringKind:
				if s := v.String(); !utf8.ValidString(s) {
					err = fault.New(fault.Invalid, "%s %+q is not UTF-8", field.Name(), s)
				}
			case protoreflect.MessageKind:
				err = checkMessage(v.Message())
			}
			return err == nil
		}
		switch {
		case field.IsMap():
			value.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				return check(k.Value(), field.MapKey()) && check(v, field.MapValue())
			})
		case field.IsList():
			for i := 0; i < value.List().Len() && check(value.List().Get(i), field); i++ {
			}
		default:
			check(value, field)
		}
		return err == nil
	})
	return err
}
